"""Jobs that do not need each other, here or in processes of their own, one thread each."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from multiprocessing.connection import wait
from typing import Any

import torch

from dfkd.allocator import keep_freed_memory
from dfkd.naming import OneLine

__all__ = ["Job", "run_all"]

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def run_all(
    settings: Any,
    jobs: Sequence[Job],
    workers: int,
    finished: Callable[[tuple[Any, ...]], None],
    after: Mapping[int, Collection[int]] | None = None,
) -> list[Any]:
    """What `job(settings, *arguments)` returned, in order of `jobs`. One worker: this process.

    after: for a job's place among `jobs` the places before it of those that it waits for. Such a job begins as soon as
    it may, before others that wait for nobody.
    """
    after = after or {}
    for place, earlier in after.items():
        if not all(0 <= other < place < len(jobs) for other in earlier):
            raise ValueError(f"after: expected places before {place} of {len(jobs)} jobs, found {sorted(earlier)}")
    if workers == 1 or len(jobs) < 2:
        done = []
        for job, arguments in jobs:
            done.append(job(settings, *arguments))
            finished(arguments)
        return done
    try:
        payloads = {job: pickle.dumps((job, settings)) for job in dict.fromkeys(job for job, _ in jobs)}
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"workers: several processes need settings that can be pickled ({reason}); use workers=1"
        ) from error
    context = multiprocessing.get_context("spawn")
    # a command's: what it has said is not said again by each process
    show = warnings.showwarning if isinstance(warnings.showwarning, OneLine) else None
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (show,)) as pool:
        running: dict[Future[Any], int] = {}
        waiting, results = list(range(len(jobs))), dict[int, Any]()
        try:
            while waiting or running:
                ready = [place for place in waiting if all(other in results for other in after.get(place, ()))]
                for place in sorted(ready, key=lambda place: (place not in after, place))[: workers - len(running)]:
                    job, arguments = jobs[place]
                    running[pool.submit(_work, payloads[job], arguments)] = place
                    waiting.remove(place)
                for future in wait_for(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(future)
                    results[place] = future.result()
                    finished(jobs[place][1])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [results[place] for place in range(len(jobs))]


def _work(payload: bytes, arguments: tuple[Any, ...]) -> Any:
    job, settings = pickle.loads(payload)  # our own bytes, made a moment ago by the parent process
    return job(settings, *arguments)


def _begin(show: OneLine | None) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    if show is not None:
        warnings.showwarning = show
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Ends this process with its parent: a run in progress saves first, an idle process would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
