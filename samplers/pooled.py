"""A bank of images that another sampler adds to now and then, and from which every batch is drawn.

no paper. Images are kept as bytes, 256 levels of the box, on the device, and the teacher labels what is kept, once.
Bytes cannot show that an image was not finite; from the round on that held one, the bank gives NaN.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dfkd.interfaces import Sampler, walk
from dfkd.pixels import to_bytes, to_pixels
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import derive
from dfkd.types import Batch, Outputs, whole

from .bank import Round, bank_key, shared_round
from .checks import a_sampler, one_mode, some_rows, whole_at_least
from .state import State, Stream, adopt

Evict = Literal["oldest", "random"]
COLUMNS = ("y", "target", "weight", "source", "logits")
"""What is kept of a row beside its pixels; a column without rows is one that the base does not have."""
SHUFFLED = 1 << 16
"""Rows up to which a draw puts all of a bank in random order, which takes 1 ms then, and 16 of a million rows."""


@dataclass(frozen=True)
class Pooled:
    """Rows of the bank, drawn evenly: none twice in a draw of no more rows than the bank has. Draws that nothing is
    learnt from are fresh rows of the base instead: scored on its bank, a student would be scored on what it learned.

    base: what fills the bank; labelled in one BatchNorm mode. round: rows asked of it at a time. every: draws after
    which another round is added, None adds none. warmup: rounds before the first draw, >= 1. capacity: most rows that
    are kept, None keeps all. evict: which rows make room, the `oldest` or `random` ones of those there.
    The bank depends on the run's seed and these settings, not on the place in a composite: equal pools of one run hold
    the same images, share one file where the problem has a folder for banks, and differ in what they draw.
    """

    base: Sampler
    round: int = 256
    every: int | None = 400
    warmup: int = 1
    capacity: int | None = None
    evict: Evict = "oldest"
    name: ClassVar[str] = "pooled"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def __post_init__(self) -> None:
        a_sampler("base", self.base)
        whole_at_least(self, 1, "round", "warmup")
        if self.every is not None:
            whole_at_least(self, 1, "every")
        if self.capacity is not None:
            whole_at_least(self, self.round, "capacity")
        if self.evict not in get_args(Evict):
            raise ValueError(f"evict: expected one of {', '.join(get_args(Evict))}, found {self.evict!r}")

    def init(self, problem: Problem, seed: int) -> State:
        """An empty bank: the first round is made when the first draw is learnt from."""
        own = any(part.uses_student for part in walk(self.base))
        key = bank_key(self.base, self.round, problem)
        base_seed = derive(seed, "base") if own else derive(problem.seed, "bank", key)
        return State(
            stream=Stream(derive(seed, self.name), problem.device),
            base=self.base.init(problem, base_seed),
            key="" if own else key,
            rounds=0,
            draws=0,
            mode="eval",
            precision="float32",
            spoilt=torch.zeros((), device=problem.device),
            images=torch.empty(0, *problem.spec.shape, dtype=torch.uint8, device=problem.device),
            **{column: torch.empty(0, device=problem.device) for column in COLUMNS},
        )

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        if not learn:
            return self.fresh(state, problem, n)
        self.grow(state, problem)
        index = places(len(state.images), n, state.stream.advance(), problem.device)
        return self.take(state, problem, index)

    def grow(self, state: State, problem: Problem) -> None:
        """Counts a draw, and adds the rounds that are due before it."""
        due = self.warmup + (0 if self.every is None else state.draws // self.every)
        while state.rounds < due:
            self._grow(state, problem)
        state.draws += 1

    def take(self, state: State, problem: Problem, index: Tensor) -> Batch:
        """The rows at these places of the bank, (n,) int64."""
        y, target, weight, source, logits = (_taken(getattr(state, name), index) for name in COLUMNS)
        x = to_pixels(state.images[index], problem.spec).add_(state.spoilt)
        labelling = whole(len(index), state.mode)
        teacher = None if logits is None else Outputs(logits, {}, labelling, state.precision)
        return Batch(x, y, target, weight, source, labelling=labelling, teacher=teacher)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss  # the base drew these rows long ago, among others

    def _grow(self, state: State, problem: Problem) -> None:
        """Adds one round, makes room for it first where the bank is full."""
        new = shared_round(problem, state.key, state.rounds, state.base, lambda: self._round(state, problem))
        old, device = len(state.images), problem.device
        if old and new.mode != state.mode:
            raise UnsupportedProblem(
                f"pooled: expected a base labelled in one BatchNorm mode, found {state.mode} and {new.mode}"
            )
        state.rounds, state.mode, state.precision = state.rounds + 1, new.mode, new.precision
        state.spoilt = state.spoilt + new.spoilt
        excess = 0 if self.capacity is None else max(0, old + len(new.images) - self.capacity)
        kept: Tensor | slice = slice(excess, None)  # not places, where the oldest go: nothing is copied twice
        if excess and self.evict == "random":
            rng = torch.Generator(device).manual_seed(derive(state.stream.seed, "evict", state.rounds))
            kept = torch.randperm(old, generator=rng, device=device)[excess:].sort().values
        state.images = torch.cat([state.images[kept], new.images])
        for name in COLUMNS:
            column, added = getattr(state, name), new.columns.get(name, torch.empty(0, device=device))
            if old:  # what not every row has, none has
                whole_column = len(column) and column.shape[1:] == added.shape[1:] and len(added)
                added = torch.cat([column[kept], added]) if whole_column else added[:0]
            setattr(state, name, added)

    def _round(self, state: State, problem: Problem) -> Round:
        """One round of the base: rounded to bytes, then labelled where labels do not depend on a row's company."""
        batch = self.base.draw(state.base, problem, self.round, True)
        mode = one_mode(batch, self.name)
        images = to_bytes(batch.x, problem.spec)
        columns = {name: getattr(batch, name) for name in ("y", "target", "weight", "source")}
        precision = problem.teacher.precision
        if mode == "eval":
            columns["logits"] = problem.label(Batch(to_pixels(images, problem.spec))).logits
        return Round(images, {k: v for k, v in columns.items() if v is not None}, mode, precision, spoilt(batch.x))

    def fresh(self, state: State, problem: Problem, n: int) -> Batch:
        """Rows of the base that no bank has held: what a draw gives that nothing is learnt from, as for scoring."""
        rng, inner = state.stream.advance(), state.base
        if state.key:  # the shared bank must not depend on such draws, so they come from a base of their own
            inner = adopt(self.base.init(problem, derive(rng.initial_seed(), "fresh")), state.base)
        batch = self.base.draw(inner, problem, n, False)
        one_mode(batch, self.name)
        return batch.with_x(to_pixels(to_bytes(batch.x, problem.spec), problem.spec).add_(spoilt(batch.x)))


def spoilt(x: Tensor) -> Tensor:
    """0-d: 0, or NaN where an image is not finite. Nothing waits for the device to know."""
    return torch.where(x.isfinite().all(), 0.0, torch.nan)


def _taken(column: Tensor, index: Tensor) -> Tensor | None:
    return column[index] if len(column) else None


def places(size: int, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """(n,) places in a bank of `size` rows; each comes once before any comes again, and is as likely as any other."""
    if size > SHUFFLED and n <= size // 16:
        # one out of each of n equal parts, all moved round by the same random number of places, which makes up for
        # parts of one place less: nothing of the bank's size is made
        edges = torch.arange(n + 1, device=device) * size // n
        within = torch.rand(n, dtype=torch.float64, generator=rng, device=device) * edges.diff()
        return (edges[:-1] + within.long() + torch.randint(size, (1,), generator=rng, device=device)) % size
    turns = [torch.randperm(size, generator=rng, device=device) for _ in range(-(-n // size))]
    return torch.cat(turns)[:n]
