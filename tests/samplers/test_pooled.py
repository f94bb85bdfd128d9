"""Pooled: what is in the bank and when, and how runs share it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd.pixels import to_bytes, to_pixels
from dfkd.problem import Problem
from dfkd.types import Batch, InputSpec
from samplers import (
    DFAD,
    Adversarial,
    DeadLeaves,
    DeepInversion,
    Gaussian,
    Mixture,
    OneImage,
    OutOfDomain,
    Pooled,
    Prioritised,
    Real,
    Shader,
    Spectrum,
    Uniform,
    pooled,
)
from samplers.state import State

MakeProblem = Callable[..., Problem]


@dataclass(frozen=True)
class Numbered:
    """Row r of all it has ever drawn has the target r and pixels of r / 200; its teacher is asked about every row."""

    name: ClassVar[str] = "numbered"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> State:
        del problem, seed
        return State(drawn=0, asked=torch.empty(0, dtype=torch.int64))

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        rows = torch.arange(state.drawn, state.drawn + n)
        state.drawn += n
        state.asked = torch.cat([state.asked, torch.tensor([n if learn else -n])])
        x = (rows / 200).reshape(n, 1, 1, 1).expand(n, *problem.spec.shape).contiguous()
        with torch.no_grad(), problem.searching():
            problem.teacher(x)
        return Batch(x, target=rows, source=rows % 3, weight=rows + 1.0)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def targets(batch: Batch) -> set[int]:
    assert batch.target is not None
    return set(batch.target.tolist())


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
def test_bytes_are_the_nearest_levels(box: tuple[float, float]) -> None:
    spec = InputSpec((1, 4, 64), 10, *box)
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_pixels(levels, spec), spec), levels)
    assert to_pixels(levels, spec)[[0, 255]].tolist() == list(box)
    x = torch.empty(1000).uniform_(*box, generator=torch.Generator().manual_seed(1))
    assert (to_pixels(to_bytes(x, spec), spec) - x).abs().max() <= 0.5001 * spec.span / 255


def test_grows_by_a_round_on_schedule(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=6, every=3, warmup=2)
    state = pool.init(problem, 1)
    assert len(state.images) == 0  # nothing is made before it is drawn from
    sizes = []
    for _ in range(8):
        batch = pool.draw(state, problem, 5)
        pool.draw(state, problem, 5, learn=False)  # from a base of its own
        sizes.append(len(state.images))
        assert targets(batch) <= set(range(sizes[-1]))
    assert sizes == [12, 12, 12, 18, 18, 18, 24, 24]
    assert state.base.asked.tolist() == [6] * 4  # always a round, whatever is drawn


def test_never_grows_without_a_schedule(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=6, every=None)
    state = pool.init(problem, 1)
    for _ in range(9):
        pool.draw(state, problem, 5)
    assert state.rounds == 1


def test_draws_every_row_before_any_twice(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=20, every=None)
    state = pool.init(problem, 1)
    assert len(targets(pool.draw(state, problem, 20))) == 20
    assert len(targets(pool.draw(state, problem, 13))) == 13
    many = pool.draw(state, problem, 50).target
    assert many is not None
    counts = many.bincount(minlength=20)
    assert counts.min() >= 2
    assert counts.max() <= 3
    first = pool.draw(state, problem, 20).target
    assert first is not None
    assert not torch.equal(first, pool.draw(state, problem, 20).target)  # type: ignore[arg-type]


def test_draws_all_rows_as_often(make_problem: MakeProblem) -> None:
    """2000 draws of one of 4 rows: a share is off 1/4 by over 0.064 with probability 2 exp(-2 * 2000 * 0.064^2)."""
    problem = make_problem()
    pool = Pooled(Numbered(), round=4, every=None)
    state = pool.init(problem, 1)
    counts = torch.zeros(4)
    for _ in range(2000):
        counts[next(iter(targets(pool.draw(state, problem, 1))))] += 1
    assert (counts / 2000 - 0.25).abs().max() < 0.064


@pytest.mark.parametrize(("size", "n"), [(100_003, 64), (100_003, 6_250), (65_537, 1), (1_000_000, 256)])
def test_a_draw_from_many_rows_has_none_twice(size: int, n: int) -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        found = pooled.places(size, n, rng, torch.device("cpu"))
        assert found.dtype == torch.int64
        assert int(found.min()) >= 0
        assert int(found.max()) < size
        assert len(found.unique()) == n


def test_of_many_rows_each_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 16 and of 17 rows: without the shift, those of the larger ones would come up 6 % less often."""
    monkeypatch.setattr(pooled, "SHUFFLED", 99)
    size, n, draws = 115, 7, 100_000
    rng, drawn = torch.Generator().manual_seed(0), torch.zeros(size)
    for _ in range(draws):
        drawn[pooled.places(size, n, rng, torch.device("cpu"))] += 1
    expected = draws * n / size
    statistic = float(((drawn - expected) ** 2 / expected).sum())
    assert statistic < 165  # chi squared of 114: 0.999 lie below


def test_a_draw_does_not_cost_more_from_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", None)
    largest: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = operation(*args, **(kwargs or {}))
            largest.append(out.numel())
            return out

    with Sizes():
        pooled.places(1_000_000, 64, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert max(largest) == 65


def test_what_is_said_of_a_row_stays_with_it(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=20, every=1, capacity=50, evict="random")
    state = pool.init(problem, 1)
    for _ in range(5):
        batch = pool.draw(state, problem, 16)
    assert batch.target is not None
    assert torch.equal(batch.source, batch.target % 3)  # type: ignore[arg-type]
    assert torch.equal(batch.weight, batch.target + 1.0)  # type: ignore[arg-type]
    levels = (batch.target * 255 / 200).round() / 255
    torch.testing.assert_close(batch.x, levels.reshape(-1, 1, 1, 1).expand_as(batch.x))
    assert batch.teacher is not None  # labelled after rounding
    torch.testing.assert_close(batch.teacher.logits, problem.teacher(batch.x).logits.detach())


def test_the_oldest_make_room(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=10, every=1, capacity=25)
    state = pool.init(problem, 1)
    kept = []
    for _ in range(4):
        pool.draw(state, problem, 1)
        kept.append(sorted(state.target.tolist()))
    assert kept == [list(range(10)), list(range(20)), list(range(5, 30)), list(range(15, 40))]


def test_random_ones_make_room(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Numbered(), round=10, every=1, capacity=25, evict="random")
    state = pool.init(problem, 1)
    for rounds in range(1, 9):
        pool.draw(state, problem, 1)
        kept = set(state.target.tolist())
        assert set(range(10 * rounds - 10, 10 * rounds)) <= kept  # never the newest
        assert len(kept) == min(25, 10 * rounds)
    assert kept != set(range(55, 80))


def test_drawing_without_learning_gives_fresh_rows_and_leaves_the_bank_alone(make_problem: MakeProblem) -> None:
    problem = make_problem()
    pool = Pooled(Uniform(labelling="eval"), round=10, every=None)
    state, other = pool.init(problem, 1), pool.init(problem, 1)
    early = pool.draw(state, problem, 4, learn=False)  # before there is a bank, too
    assert len(state.images) == 0
    assert torch.equal(early.x, to_pixels(to_bytes(early.x, problem.spec), problem.spec))
    pool.draw(state, problem, 4)
    pool.draw(other, problem, 4)
    assert torch.equal(state.images, other.images)
    late = torch.cat([pool.draw(state, problem, 30, learn=False).x for _ in range(2)])
    rows = {tuple(row) for row in to_bytes(late, problem.spec).flatten(1).tolist()}
    assert len(rows) == 60
    assert not rows & {tuple(row) for row in state.images.flatten(1).tolist()}
    assert torch.equal(state.images, other.images)


# -- sharing -------------------------------------------------------------------------------------------------------


def run(pool: Pooled, problem: Problem, seed: int, draws: int = 3) -> tuple[State, list[Batch]]:
    state = pool.init(problem, seed)
    return state, [pool.draw(state, problem, 8) for _ in range(draws)]


POOL = Pooled(DeepInversion(steps=2, batch=8), round=8, every=2)


def bank_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def test_equal_pools_share_images_and_their_cost(make_problem: MakeProblem, tmp_path: Path) -> None:
    problems = [make_problem(banks=tmp_path / "banks"), make_problem(banks=tmp_path / "banks"), make_problem()]
    states, batches = zip(
        *(run(POOL, problem, seed) for problem, seed in zip(problems, (1, 2, 1), strict=True)), strict=True
    )
    assert len(bank_files(tmp_path / "banks")) == 2
    assert states[0].rounds == 2
    for state in states[1:]:  # made, read, and made without a folder
        assert torch.equal(states[0].images, state.images)
    assert problems[0].teacher.counts == problems[1].teacher.counts == problems[2].teacher.counts
    assert problems[0].teacher.counts["synthesise"]["backward"] > 0
    assert not torch.equal(batches[0][0].x, batches[1][0].x)  # what is drawn depends on the seed of the draw
    for one, other in zip(batches[0], batches[2], strict=True):  # and not on whether there is a folder
        assert torch.equal(one.x, other.x)


def test_a_reader_goes_on_as_the_maker_would(make_problem: MakeProblem, tmp_path: Path) -> None:
    """Round 1 made by one who has read round 0 equals round 1 of who has made both."""
    first, second, alone = make_problem(banks=tmp_path), make_problem(banks=tmp_path), make_problem()
    run(POOL, first, 1, draws=1)
    assert len(bank_files(tmp_path)) == 1
    state, _ = run(POOL, second, 2)
    expected, _ = run(POOL, alone, 3)
    assert torch.equal(state.images, expected.images)


def test_the_reader_is_charged_what_is_written(make_problem: MakeProblem, tmp_path: Path) -> None:
    pool = Pooled(Numbered(), round=8, every=None)
    first, second = make_problem(banks=tmp_path), make_problem(banks=tmp_path)
    run(pool, first, 1)
    (path,) = bank_files(tmp_path)
    from samplers.bank import _read, _write

    saved = _read(path, torch.device("cpu"))
    assert saved is not None
    assert saved["counts"] == {"synthesise": {"forward": 8, "backward": 0}, "label": {"forward": 8, "backward": 0}}
    saved["seconds"] = 100.0
    _write(path, saved)
    state, _ = run(pool, second, 2)
    assert 99.0 < second.charged_seconds <= 100.0  # less what reading took on its own clock
    assert state.base.drawn == 8


def others(make_problem: MakeProblem, banks: Path) -> dict[str, tuple[Pooled, Problem]]:
    small = DeepInversion(steps=2, batch=8)
    return {
        "settings": (Pooled(DeepInversion(steps=3, batch=8), round=8, every=2), make_problem(banks=banks)),
        "round": (Pooled(small, round=7, every=2), make_problem(banks=banks)),
        "run": (POOL, make_problem(banks=banks, seed=1)),
        "teacher": (POOL, _nudged(make_problem(banks=banks))),
        "box": (POOL, make_problem(banks=banks, low=-1.0, high=2.0)),
    }


def _nudged(problem: Problem) -> Problem:
    with torch.no_grad():
        next(problem.teacher.module.parameters()).add_(1e-3)
    return problem


@pytest.mark.parametrize("what", ["settings", "round", "run", "teacher", "box"])
def test_pools_that_differ_share_nothing(what: str, make_problem: MakeProblem, tmp_path: Path) -> None:
    run(POOL, make_problem(banks=tmp_path), 1, draws=1)
    pool, problem = others(make_problem, tmp_path)[what]
    run(pool, problem, 1, draws=1)
    assert len(bank_files(tmp_path)) == 2


@pytest.mark.parametrize(
    "base", [Adversarial(Gaussian(), steps=1), DeepInversion(steps=1, batch=8, adaptive=1.0)], ids=lambda b: str(b.name)
)
def test_what_depends_on_the_student_is_not_shared(base: Any, make_problem: MakeProblem, tmp_path: Path) -> None:
    problem = make_problem(banks=tmp_path)
    one, _ = run(Pooled(base, round=8), problem, 1)
    two, _ = run(Pooled(base, round=8), problem, 2)
    assert bank_files(tmp_path) == []
    assert not torch.equal(one.images, two.images)  # its seed is that of its place


@pytest.mark.parametrize("damage", ["cut", "emptied", "bit flipped", "another program's"])
def test_a_damaged_file_is_made_again(damage: str, make_problem: MakeProblem, tmp_path: Path) -> None:
    expected, _ = run(POOL, make_problem(banks=tmp_path), 1, draws=1)
    (path,) = bank_files(tmp_path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(
        {"cut": content[:-100], "emptied": b"", "bit flipped": bytes(flipped)}.get(damage, b"\x80\x04." * 9)
    )
    problem = make_problem(banks=tmp_path)
    state, _ = run(POOL, problem, 2, draws=1)
    assert torch.equal(state.images, expected.images)
    assert len(path.read_bytes()) == len(content)
    before = path.stat().st_mtime_ns
    run(POOL, make_problem(banks=tmp_path), 3, draws=1)
    assert path.stat().st_mtime_ns == before  # whole again: the next one only reads it


def test_a_file_never_lies_there_half_written(make_problem: MakeProblem, tmp_path: Path) -> None:
    run(POOL, make_problem(banks=tmp_path), 1)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ".lock"}


def test_says_where_it_cannot_write(make_problem: MakeProblem, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pool = Pooled(Uniform(), round=4)
    problem = make_problem(banks=tmp_path / "file" / "banks")
    with pytest.raises(ValueError, match=r"banks: cannot write in .*file.banks: "):
        pool.draw(pool.init(problem, 1), problem, 4)


@dataclass(frozen=True)
class Slow(Numbered):
    """Takes long enough that two runs meet, and leaves a mark each time that it is asked."""

    folder: str = ""

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        Path(self.folder, str(threading.get_ident())).write_text("asked")
        time.sleep(0.5)
        return super().draw(state, problem, n, learn)


def test_of_two_runs_at_once_one_makes_and_one_waits(make_problem: MakeProblem, tmp_path: Path) -> None:
    """Two threads, whose locks are as separate as those of two processes: each has opened the file for itself."""
    marks = tmp_path / "marks"
    marks.mkdir()
    pool = Pooled(Slow(folder=str(marks)), round=4)
    problems = [make_problem(banks=tmp_path / "banks") for _ in range(2)]
    with ThreadPoolExecutor(2) as both:
        (one, _), (two, _) = both.map(lambda problem: run(pool, problem, 1, draws=1), problems)
    assert len(list(marks.iterdir())) == 1
    assert torch.equal(one.images, two.images)
    assert problems[0].teacher.counts == problems[1].teacher.counts
    charged = sorted(problem.charged_seconds for problem in problems)
    assert charged[0] == 0.0
    # half a second was waited for, which has passed on its own clock already: it pays for no second twice
    assert charged[1] < 0.5


def test_a_shared_bank_continues_exactly(make_problem: MakeProblem, tmp_path: Path) -> None:
    problem = make_problem(banks=tmp_path)
    state, _ = run(POOL, problem, 1)
    saved = state.state_dict()
    expected = [POOL.draw(state, problem, 8) for _ in range(4)]
    again = make_problem(banks=tmp_path / "gone")  # the folder is a convenience: a checkpoint needs none of it
    state = POOL.init(again, 1)
    state.load_state_dict(saved)
    for batch in expected:
        assert torch.equal(batch.x, POOL.draw(state, again, 8).x)


@pytest.mark.parametrize(
    "base",
    [
        Real(),
        Uniform(labelling="eval"),
        DeadLeaves(),
        Spectrum(),
        Shader(),
        OneImage(),
        OutOfDomain("digits", limit=40),
        DeepInversion(steps=1, batch=4),
        Pooled(Gaussian(labelling="eval"), round=4, every=1),
    ],
    ids=lambda base: base.name,
)
def test_a_shared_bank_does_not_depend_on_draws_that_teach_nothing(base: Any, make_problem: MakeProblem) -> None:
    problem, pool = make_problem(), Pooled(base, round=4, every=1)
    watched, alone = pool.init(problem, 1), pool.init(problem, 1)
    for _ in range(3):
        pool.draw(watched, problem, 4)
        pool.draw(watched, problem, 3, learn=False)
        pool.draw(alone, problem, 4)
    assert torch.equal(watched.images, alone.images)


@dataclass(frozen=True)
class Endless(Numbered):
    """Its third draw and those after it have a pixel of NaN."""

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        batch = super().draw(state, problem, n, learn)
        if len(state.asked) > 2:
            batch.x[0, 0, 0, 0] = torch.nan
        return batch


@pytest.mark.parametrize("bank", [Pooled, Prioritised])
def test_images_that_are_not_finite_end_the_run(bank: Any, make_problem: MakeProblem) -> None:
    """As bytes they would be black images, which a student learns from as from any other."""
    problem, pool = make_problem(), bank(DFAD(latent=4, batch=4, learning_rate=1e30), round=4, every=None, warmup=6)
    state = pool.init(problem, 1)
    assert bool(pool.draw(state, problem, 4).x.isnan().all())
    resumed = pool.init(problem, 1)
    resumed.load_state_dict(state.state_dict())
    assert bool(pool.draw(resumed, problem, 4).x.isnan().all())


def test_images_that_are_not_finite_are_so_for_whoever_shares_the_bank(
    make_problem: MakeProblem, tmp_path: Path
) -> None:
    pool = Pooled(Endless(), round=4, every=1)
    for _ in range(2):
        problem = make_problem(banks=tmp_path)
        state = pool.init(problem, 1)
        finite = [bool(pool.draw(state, problem, 4).x.isfinite().all()) for _ in range(4)]
        assert finite == [True, True, False, False]
        assert bool(pool.draw(state, problem, 4, learn=False).x.isnan().all())


def test_refuses_what_it_cannot_do(make_problem: MakeProblem) -> None:
    problem = make_problem()
    mixed = Pooled(Mixture((Uniform(), Real())), round=8)
    with pytest.raises(
        ValueError, match="pooled: expected a base labelled in one BatchNorm mode, found batch and eval"
    ):
        mixed.draw(mixed.init(problem, 1), problem, 4)
    changing = Pooled(Mixture((Uniform(), Real())), round=1, every=1)  # rounds of one row are of one mode each
    state = changing.init(problem, 1)
    with pytest.raises(ValueError, match="pooled: expected a base labelled in one BatchNorm mode"):
        [changing.draw(state, problem, 4) for _ in range(40)]
    for settings, message in (
        ({"round": 0}, "round: expected an integer >= 1, found 0"),
        ({"every": 0}, "every: expected an integer >= 1, found 0"),
        ({"warmup": 0}, "warmup: expected an integer >= 1, found 0"),
        ({"round": 64, "capacity": 63}, "capacity: expected an integer >= 64, found 63"),
        ({"evict": "newest"}, "evict: expected one of oldest, random, found 'newest'"),
    ):
        with pytest.raises(ValueError, match=message):
            Pooled(Uniform(), **settings)
