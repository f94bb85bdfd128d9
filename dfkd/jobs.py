"""Jobs that do not need each other, here or in processes of their own, one thread each."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

import torch

__all__ = ["Job", "run_all"]

Job = tuple[Callable[..., Any], tuple[Any, ...]]


def run_all(settings: Any, jobs: Sequence[Job], workers: int, finished: Callable[[tuple[Any, ...]], None]) -> list[Any]:
    """What `job(settings, *arguments)` returned, in order of `jobs`. One worker: this process."""
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
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin) as pool:
        futures: dict[Future[Any], tuple[Any, ...]] = {
            pool.submit(_work, payloads[job], arguments): arguments for job, arguments in jobs
        }
        try:
            for future in as_completed(futures):
                future.result()
                finished(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _work(payload: bytes, arguments: tuple[Any, ...]) -> Any:
    job, settings = pickle.loads(payload)  # our own bytes, made a moment ago by the parent process
    return job(settings, *arguments)


def _begin() -> None:
    torch.set_num_threads(1)
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
