"""What a student is scored on: fixed banks of images, and how both models are asked for their answers.

The banks are made once and shared by all students of a comparison; only `worst_case` is searched against each.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from dfkd.interfaces import Sampler
from dfkd.pixels import to_bytes, to_pixels
from dfkd.problem import Probe, Problem
from dfkd.rng import derive
from dfkd.types import BatchNormMode, InputSpec, Labelling, Outputs, whole

__all__ = [
    "Column",
    "Kind",
    "answers",
    "as_evaluation",
    "chunks",
    "draws_column",
    "logits",
    "test_column",
    "uniform_column",
]

Kind = Literal["test", "corrupted", "uniform", "draws", "worst_case"]
KINDS: Final = ("test", "corrupted", "uniform", "draws", "worst_case")


@dataclass(frozen=True)
class Column:
    """One evaluation distribution, as rows that stay the same.

    x (n, c, h, w): uint8, 0 and 255 being the ends of the pixel box; float32 pixels in `worst_case` alone, whose
    steps are finer. y (n,) int64 where the truth is known. labelling: the BatchNorm mode the teacher is asked in, run
    by run.
    """

    name: str
    x: Tensor
    y: Tensor | None
    labelling: Labelling
    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {self.kind!r}")
        expected = torch.float32 if self.kind == "worst_case" else torch.uint8
        if self.x.ndim != 4 or len(self.x) < 1 or self.x.dtype != expected:
            raise ValueError(
                f"x: expected {expected} of shape (n, c, h, w) with n >= 1, found {self.x.dtype} {tuple(self.x.shape)}"
            )
        if self.y is not None and (self.y.shape != (len(self.x),) or self.y.dtype != torch.int64):
            raise ValueError(f"y: expected int64 ({len(self.x)},), found {self.y.dtype} {tuple(self.y.shape)}")
        if sum(rows for rows, _ in self.labelling) != len(self.x):
            raise ValueError(f"labelling: expected runs that add up to {len(self.x)} rows, found {self.labelling!r}")

    def __len__(self) -> int:
        return self.x.shape[0]


def test_column(images: Tensor, y: Tensor | None) -> Column:
    """The test set as it is."""
    return Column("test", images, y, whole(len(images), "eval"), "test")


test_column.__test__ = False  # type: ignore[attr-defined]  # for pytest: a column, not a test


def uniform_column(spec: InputSpec, n: int, seed: int, mode: BatchNormMode = "eval") -> Column:
    """n images whose pixels are independent and uniform over the 256 levels."""
    generator = torch.Generator().manual_seed(derive(seed, "column", "uniform"))
    x = torch.randint(0, 256, (n, *spec.shape), dtype=torch.uint8, generator=generator)
    return Column("uniform", x, None, whole(n, mode), "uniform")


def draws_column(label: str, sampler: Sampler, state: Any, problem: Problem, n: int, batch: int = 256) -> Column:
    """n fresh draws of a trained sampler, rounded to uint8, on the CPU. Only the sampler's stream moves.

    They are asked for in equal draws of at most `batch` rows, and each keeps its own run in `labelling`: in mode
    `batch` the teacher answers a draw as it did during training. What it costs is counted under "evaluate".
    """
    if n < 1:
        raise ValueError(f"n: expected an integer >= 1, found {n!r}")
    images: list[Tensor] = []
    labels: list[Tensor | None] = []
    labelling: Labelling = ()
    with as_evaluation(problem):
        for part in chunks(n, batch, mixed=False):
            drawn = sampler.draw(state, problem, len(part), learn=False)
            images.append(to_bytes(drawn.x, problem.spec).cpu())  # sync
            hard = drawn.y is not None and drawn.y.ndim == 1 and drawn.y.dtype == torch.int64
            labels.append(drawn.y.cpu() if hard and drawn.y is not None else None)  # sync
            labelling += drawn.labelling
    known = [y for y in labels if y is not None]
    y = torch.cat(known) if len(known) == len(labels) else None
    return Column(f"draws of {label}", torch.cat(images), y, labelling, "draws")


def logits(
    probe: Probe,
    x: Tensor,
    spec: InputSpec,
    mode: BatchNormMode | Labelling = "eval",
    batch: int = 500,
) -> Tensor:
    """x (n, c, h, w) uint8 or pixels -> (n, k) float32 on the CPU, counted under "evaluate". Modes as for `answers`."""
    return answers(probe, x, spec, mode, batch).logits


def answers(
    probe: Probe,
    x: Tensor,
    spec: InputSpec,
    mode: BatchNormMode | Labelling = "eval",
    batch: int = 500,
    taps: Sequence[str] = (),
    kept: Tensor | None = None,
) -> Outputs:
    """x (n, c, h, w) uint8 or pixels -> logits (n, k) float32 on the CPU, counted under "evaluate".

    mode: one for all rows, or runs of rows with a mode each. In mode `batch` the rows of a run that is longer than
    `batch` are dealt into equal batches by a fixed shuffle, so that rows sorted by class are answered in mixed company;
    the answers are transductive: they depend on which rows are asked together. taps: module paths, of which the
    features are given too, (m, d) each: of the rows `kept` (m,) in ascending order, None for all.
    """
    runs: Labelling = whole(len(x), mode) if isinstance(mode, str) else mode
    if sum(rows for rows, _ in runs) != len(x):
        raise ValueError(f"mode: expected runs that add up to {len(x)} rows, found {runs!r}")
    found = torch.empty(len(x), spec.num_classes)
    features = {path: list[Tensor]() for path in taps}
    wanted = torch.zeros(len(x), dtype=torch.bool)
    wanted[slice(None) if kept is None else kept] = True
    asked_for, start = list[Tensor](), 0
    with probe.counting("evaluate"), torch.no_grad(), probe.taps(*taps):
        for rows, how in _joined(runs):
            for part in chunks(rows, batch, mixed=how == "batch"):
                here = start + part
                answer = probe(to_pixels(x[here.to(x.device)].to(probe.device), spec), how)
                found[here] = answer.logits.cpu()  # sync
                inside = wanted[here]
                asked_for.append(here[inside])
                for path, given in features.items():
                    given.append(answer.features[path].flatten(1).cpu()[inside])  # sync
            start += rows
    order = torch.cat(asked_for).argsort()  # as asked -> as they stand in x
    return Outputs(found, {path: torch.cat(given)[order] for path, given in features.items()})


def chunks(n: int, batch: int, mixed: bool) -> list[Tensor]:
    """The rows 0 ... n - 1 in ceil(n / batch) parts whose sizes differ by at most one; mixed: after a fixed shuffle."""
    if batch < 1:
        raise ValueError(f"batch: expected an integer >= 1, found {batch!r}")
    order = torch.arange(n)
    if mixed and n > batch:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(0, "column", "mixed", n)))
    return list(order.tensor_split(-(-n // batch)))


def _joined(runs: Labelling) -> Iterator[tuple[int, BatchNormMode]]:
    """Neighbouring `eval` runs as one, since there a row's answer does not depend on its company."""
    waiting = 0
    for rows, mode in runs:
        if mode == "eval":
            waiting += rows
            continue
        if waiting:
            yield waiting, "eval"
            waiting = 0
        yield rows, mode
    if waiting:
        yield waiting, "eval"


@contextmanager
def as_evaluation(problem: Problem) -> Iterator[None]:
    """Inside, whatever phase a sampler counts under, it ends up under "evaluate": budgets are not charged."""
    probes = (problem.teacher, problem.student)
    before = [{phase: dict(count) for phase, count in probe.counts.items()} for probe in probes]
    try:
        yield
    finally:
        for probe, old in zip(probes, before, strict=True):
            for phase in ("synthesise", "label"):
                added = {way: probe.counts[phase][way] - images for way, images in old[phase].items()}
                probe.counts[phase] = dict(old[phase])
                probe.charge(added, "evaluate")
