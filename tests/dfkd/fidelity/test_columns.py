"""Evaluation banks: what they hold, who is charged, and that answers are those of the rows asked."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dfkd.fidelity import Column, columns
from dfkd.pixels import to_bytes, to_pixels
from dfkd.problem import Probe, Problem
from dfkd.rng import Stream
from dfkd.types import Batch, BatchNormMode, InputSpec, whole


@dataclass(frozen=True)
class Asking:
    """Uniform noise that asks the teacher and the student while it draws, as searches do."""

    mode: BatchNormMode = "eval"
    name: ClassVar[str] = "asking"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def init(self, problem: Problem, seed: int) -> Stream:
        return Stream(seed, problem.device)

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        assert not learn
        x = torch.rand(n, *problem.spec.shape, generator=state.advance())
        with problem.searching(), torch.no_grad():
            problem.teacher(x)
            problem.student(x)
        problem.label(Batch(x))
        return Batch(x, labelling=whole(n, self.mode))

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss


def problem_of(teacher: Probe, student: Probe) -> Problem:
    return Problem(teacher, student, teacher.spec, torch.device("cpu"))


def test_uint8_and_pixels_are_inverse_on_any_box() -> None:
    spec = InputSpec((1, 16, 16), 2, low=-1.0, high=3.0)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = to_pixels(levels, spec)
    assert (float(x.min()), float(x.max())) == (-1.0, 3.0)
    assert torch.equal(to_bytes(x, spec), levels)
    assert torch.equal(to_bytes(torch.tensor([[[[-9.0, 1.0, 9.0]]]]), spec).flatten(), torch.tensor([0, 128, 255]))


def test_uniform_has_all_levels_equally_often(spec: InputSpec) -> None:
    """64 000 independent pixels: a level's share is off by over 0.003 with probability below 256 * 2e-9.

    Bernstein's bound with variance 1 / 256 and n = 64 000; levels 0 ... 254 alone would be off by 1 / 256 = 0.0039.
    """
    column = columns.uniform_column(spec, 1000, seed=1)
    shares = torch.bincount(column.x.flatten().long(), minlength=256) / 64_000
    assert float((shares - 1 / 256).abs().max()) < 0.003
    assert column.y is None
    assert column.labelling == ((1000, "eval"),)
    assert torch.equal(column.x, columns.uniform_column(spec, 1000, seed=1).x)
    assert not torch.equal(column.x, columns.uniform_column(spec, 1000, seed=2).x)


def test_draws_are_charged_to_evaluation_alone(teacher: Probe, student: Probe) -> None:
    problem = problem_of(teacher, student)
    teacher.charge({"forward": 5, "backward": 3})
    sampler = Asking("batch")
    state = sampler.init(problem, 0)
    column = columns.draws_column("mine", sampler, state, problem, 10, batch=4)
    assert teacher.counts["synthesise"] == {"forward": 5, "backward": 3}
    assert teacher.counts["label"] == {"forward": 0, "backward": 0}
    assert teacher.counts["evaluate"] == {"forward": 20, "backward": 0}
    assert student.counts["evaluate"] == {"forward": 10, "backward": 0}
    assert column.name == "draws of mine"
    assert column.labelling == ((4, "batch"), (3, "batch"), (3, "batch"))
    assert state.step == 3
    again = Stream(0)
    expected = torch.cat([torch.rand(m, 1, 8, 8, generator=again.advance()) for m in (4, 3, 3)])
    assert torch.equal(column.x, (expected * 255).round().to(torch.uint8))


def test_answers_are_in_the_order_of_the_rows(teacher: Probe, spec: InputSpec) -> None:
    x = columns.uniform_column(spec, 23, seed=0).x
    with torch.no_grad():
        expected = teacher.module(x.float() / 255.0)
    for batch in (1, 4, 50):
        torch.testing.assert_close(columns.logits(teacher, x, spec, "eval", batch), expected)
    assert teacher.counts["evaluate"]["forward"] == 3 * 23
    assert teacher.images == 0


def test_batch_mode_deals_rows_into_fixed_mixed_batches(teacher: Probe, spec: InputSpec) -> None:
    """Rows sorted by class, here dark ones first: every batch must hold some of each, and every row its own answer."""
    x = torch.cat([torch.zeros(20, 1, 8, 8), torch.ones(20, 1, 8, 8)]).add(
        0.2 * torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    )
    parts = columns.chunks(40, 10, mixed=True)
    assert sorted(torch.cat(parts).tolist()) == list(range(40))
    assert all(0 < int((part < 20).sum()) < 10 for part in parts)
    found = columns.logits(teacher, x, spec, "batch", batch=10)
    for part in parts:
        with torch.no_grad():
            torch.testing.assert_close(found[part], teacher(x[part], "batch").logits)


def test_every_run_is_asked_in_its_own_mode(teacher: Probe, spec: InputSpec) -> None:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = columns.logits(teacher, x, spec, ((2, "eval"), (3, "eval"), (4, "batch"), (3, "batch")))
    with torch.no_grad():
        pieces = [(0, 5, "eval"), (5, 9, "batch"), (9, 12, "batch")]
        expected = torch.cat([teacher(x[a:b], "batch" if m == "batch" else "eval").logits for a, b, m in pieces])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[5:], columns.logits(teacher, x, spec, "eval")[5:], atol=1e-3)


def test_bad_columns_are_named(teacher: Probe, student: Probe, spec: InputSpec) -> None:
    x = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"x: expected torch.uint8 .*found torch.float32 \(3, 1, 8, 8\)"):
        columns.test_column(x, None)
    with pytest.raises(ValueError, match=r"y: expected int64 \(3,\), found torch.int64 \(2,\)"):
        columns.test_column(x.byte(), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labelling: expected runs that add up to 3 rows"):
        Column("test", x.byte(), None, whole(2, "eval"), "test")
    with pytest.raises(ValueError, match="mode: expected runs that add up to 3 rows"):
        columns.logits(teacher, x, spec, whole(2, "eval"))
    with pytest.raises(ValueError, match="n: expected an integer >= 1, found 0"):
        columns.draws_column("mine", Asking(), None, problem_of(teacher, student), 0)
