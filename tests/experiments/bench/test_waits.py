"""No step waits for the device: found on a CPU by watching every operation of whole runs, each sampler and each loss.

What would make the host wait on a GPU: reading a number (`item`, `float`, `bool`, `if` of a tensor), and
whatever has as many rows as it finds (`nonzero`, masks). Allowed where the line says `# sync`, in torch's optimisers,
which keep their counts of steps on the CPU, and where a file asks first whether it is on a CPU.
"""

import ast
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd.engine import Budget, Optimiser, train
from dfkd.losses import KL, combine
from dfkd.registry import LOSSES, find
from experiments.bench import throughput
from experiments.bench.gpu import OPTIONS, SKIP, Lent, problem_of
from experiments.bench.lent import noise
from experiments.bench.throughput import ENTRIES, SIZES

ROOT = Path(__file__).parents[3]
OURS = tuple(str(ROOT / package) for package in ("dfkd", "samplers", "generators"))
WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::bincount",
}
ON_A_CPU_ALONE = ("generators/doubling.py",)
ON_THE_HOST = ("float(quantile(share, least))", "one_hot(")
"""A number that is on the host anyway; and a check that torch makes on a CPU alone where it is told the classes."""


class Watching(TorchDispatchMode):
    """Notes where an operation would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name
        masks = name in ("aten::index", "aten::index_put_", "aten::index_put") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1] or ()
        )
        if (name in WAITS or masks) and (where := _unmarked()):
            self.found.add(f"{name.removeprefix('aten::')} at {where}")
        return func(*args, **(kwargs or {}))


def _unmarked() -> str:
    """The line of ours that asked; empty where it may. Without one (torch's own threads) it is named as torch's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file, line = frame.f_code.co_filename, frame.f_lineno
        if "/torch/optim/" in file:
            return ""
        if file.startswith(OURS):
            place = Path(file).relative_to(ROOT).as_posix()
            said = _statement(Path(file), line)
            if place in ON_A_CPU_ALONE or any(fine in said for fine in ("# sync", *ON_THE_HOST)):
                return ""
            return f"{place}:{line}"
        frame = frame.f_back
    return "torch"


def _statement(file: Path, line: int) -> str:
    """The line, and those that it goes on over until the brackets close."""
    lines = file.read_text(encoding="utf-8").splitlines()[line - 1 :]
    text = ""
    for one in lines:
        text += one
        if text.count("(") <= text.count(")") and text.count("[") <= text.count("]"):
            break
    return text


def waits(run: Callable[[], Any]) -> set[str]:
    watching = Watching()
    with watching:
        run()
    return watching.found


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SIZES", {"digits": replace(SIZES["digits"], batch=12, steps=1)})


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.saved is None and e.sampler != "one_image"])
def test_steps_on_what_a_sampler_draws(name: str) -> None:
    """Three steps: the first may make a round, so do the next."""
    about, entry = throughput.SIZES["digits"], ENTRIES[name]
    sampler = throughput._sampler(entry, about, None if entry.steps is None else 1, {})
    problem = throughput.problem_of("digits", torch.device("cpu"))
    sampler.init(problem, 0)  # data is read once, before
    objective, budget = combine({"kl": (1.0, KL(4.0))}), Budget(batch=12, steps=3)
    assert waits(lambda: train(problem, sampler, objective, budget, Optimiser(), 0, log_points=1)) == set()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"peers"}))
def test_steps_with_a_loss(name: str, tmp_path: Path) -> None:
    lent = Lent(torch.device("cpu"), tmp_path, small=True)
    problem = problem_of(lent, lent.device, "wrn-16-1", "wrn-16-1")
    objective = combine({"only": (1.0, find("loss", name, LOSSES)(**OPTIONS.get(name, {})))})
    budget = Budget(batch=8, steps=2)
    assert waits(lambda: train(problem, noise(lent, 8), objective, budget, Optimiser(), 0, log_points=1)) == set()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: 1 if x[0] > 0 else 2,
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x.masked_fill(x > 0, 0.0)[x.bool()],
    ],
)
def test_whatever_waits_is_seen(wait: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1.0, 1.0, 5)
    assert waits(lambda: x.relu().sum() + x.where(x > 0, 0.0)[torch.tensor([0, 1])].sum()) == set()
    found = waits(lambda: wait(x))
    assert found
    assert all(one.endswith(" at torch") for one in found)  # this file is none of ours
    monkeypatch.setattr(sys.modules[__name__], "OURS", (str(Path(__file__).parent),))
    assert all("test_waits.py:" in one for one in waits(lambda: wait(x)))


def test_samplers_that_read_are_watched_too() -> None:
    assert {"real", "mixup", "cutmix"} <= SKIP  # the protocol leaves them out; here they are in
    assert {"real", "mixup", "cutmix"} <= set(ENTRIES)


def test_nothing_that_a_step_calls_prints() -> None:
    """Printing a tensor reads it, and torch hides that from whoever watches."""
    files = [ROOT / "dfkd" / name for name in ("engine.py", "problem.py", "bank.py", "augment.py", "moments.py")]
    for folder in ("dfkd/losses", "dfkd/schemes", "dfkd/models", "samplers", "generators"):
        files += sorted((ROOT / folder).rglob("*.py"))
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            assert called != "print", f"{file.name}:{getattr(node, 'lineno', 0)}"
