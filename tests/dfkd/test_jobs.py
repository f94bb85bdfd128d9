"""Jobs in this process and in others: the same answers in the same order, and errors that arrive."""

import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from dfkd.jobs import Job, run_all
from dfkd.naming import OneLine


def finished(found: list[Any]) -> Any:
    return lambda arguments: found.append(arguments)


def test_here_jobs_run_in_order() -> None:
    done: list[Any] = []
    jobs: list[Job] = [(divmod, (4,)), (pow, (2,)), (divmod, (3,))]
    assert run_all(7, jobs, 1, finished(done)) == [(1, 3), 49, (2, 1)]
    assert done == [(4,), (2,), (3,)]


def test_in_processes_results_come_in_order_of_the_jobs() -> None:
    """torch.full_like(settings, n) is a job that can be found by name in any process."""
    done: list[Any] = []
    jobs: list[Job] = [(torch.full_like, (n,)) for n in range(5)]
    found = run_all(torch.zeros(2), jobs, 2, finished(done))
    assert [tensor.tolist() for tensor in found] == [[n, n] for n in range(5)]
    assert sorted(done) == [(n,) for n in range(5)]


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match=r"workers: several processes need settings that can be pickled .*workers=1$"):
        run_all(lambda: 3, [(pow, (1,)), (pow, (2,))], 2, finished([]))


def test_jobs_that_wait_for_others_begin_as_soon_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the last one of six may begin, it is the next that does, in a process that is there."""
    events: list[Any] = []

    class Pool(ProcessPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            events.append(("begins", args[1][0]))
            return super().submit(fn, *args, **kwargs)

    monkeypatch.setattr("dfkd.jobs.ProcessPoolExecutor", Pool)
    jobs: list[Job] = [(torch.full_like, (n,)) for n in range(6)]
    found = run_all(torch.zeros(2), jobs, 2, lambda done: events.append(("done", done[0])), {5: [0, 1]})
    assert [tensor.tolist() for tensor in found] == [[n, n] for n in range(6)]
    both = max(events.index(("done", 0)), events.index(("done", 1)))
    assert next(event for event in events[both:] if event[0] == "begins") == ("begins", 5)
    here: list[Any] = []
    run_all(torch.zeros(2), jobs, 1, finished(here), {5: [0, 1]})
    assert here == [(n,) for n in range(6)]


@pytest.mark.parametrize("said", ["", "a"])
def test_processes_do_not_warn_again_of_what_was_said(said: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs: list[Job] = [(warnings.warn, (UserWarning,)), (pow, (1,))]  # the settings are the text
    with warnings.catch_warnings():
        warnings.showwarning = OneLine({said})
        with pytest.raises(TypeError):  # from pow: a text has no power
            run_all("a", jobs, 2, finished([]))
    assert capfd.readouterr().err == ("" if said else "dfkd: warning: a\n")


def test_a_job_cannot_wait_for_a_later_one() -> None:
    jobs: list[Job] = [(pow, (1,)), (pow, (2,))]
    with pytest.raises(ValueError, match=r"after: expected places before 0 of 2 jobs, found \[1\]"):
        run_all(2, jobs, 1, finished([]), {0: [1]})
