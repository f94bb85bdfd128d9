"""Chains of students: each stage is a distillation from the one before, and a chain that is killed goes on exactly."""

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd import models
from dfkd.fidelity.selfcheck import selfcheck
from dfkd.losses import kl_nats
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import derive, initialised
from dfkd.schemes.stages import Chain, chain
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STEPS = 5
SETTINGS: dict[str, Any] = {
    "spec": SPEC,
    "budget": dfkd.Budget(steps=STEPS, batch=8),
    "optimiser": dfkd.Optimiser(learning_rate=0.05),
    "seed": 3,
    "device": "cpu",
}


def uniform() -> Any:
    return find("sampler", "uniform", SAMPLERS)()


def teacher(seed: int = 1) -> nn.Module:
    with initialised(seed):
        module = models.build("digits_cnn", SPEC, width=8)
        module.train()(torch.rand(16, *SPEC.shape))
    return module.eval()


def sized(width: int) -> Any:
    return partial(models.build, "digits_cnn", SPEC, width=width)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    first, second = (weights(one) if isinstance(one, nn.Module) else one for one in (a, b))
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_a_chain_of_one_is_a_distillation() -> None:
    found = chain(teacher(), [sized(4)], uniform(), **SETTINGS)
    assert same(found.student, dfkd.distill(teacher(), sized(4), uniform(), **SETTINGS).student)


def test_every_stage_distils_the_one_before() -> None:
    """Step by step by hand: teacher, assistant of 6 maps, student of 4."""
    first = dfkd.distill(teacher(), sized(6), uniform(), **SETTINGS).student
    before = weights(first)
    second = dfkd.distill(first, sized(4), uniform(), **{**SETTINGS, "seed": derive(3, "stage", 1)}).student
    found = chain(teacher(), [sized(6), sized(4)], uniform(), **SETTINGS)
    assert [stage.training.status for stage in found.stages] == ["ok", "ok"]
    assert same(found.stages[0].student, before)  # frozen while it taught
    assert same(found.student, second)
    assert not found.stages[0].student.training
    assert all(p.requires_grad for p in found.stages[0].student.parameters())


def test_generations_start_at_random_each_for_itself() -> None:
    starts: list[dict[str, Tensor]] = []

    def student() -> nn.Module:
        module = models.build("digits_cnn", SPEC, width=4)
        starts.append(weights(module))
        return module

    found = chain(teacher(), [student] * 3, uniform(), **SETTINGS)
    assert len(found.stages) == len(starts) == 3
    assert not any(same(starts[a], starts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_is_compared_with_the_first_teacher() -> None:
    original = teacher()
    found = chain(original, [sized(6), sized(4)], uniform(), **SETTINGS)
    problem = found.against_first()
    assert problem.teacher.module is original
    assert problem.student.module is found.student
    assert found.last.problem.teacher.module is found.stages[0].student
    assert found.against_first(0).student.module is found.stages[0].student
    x = torch.rand(9, *SPEC.shape)
    torch.testing.assert_close(problem.teacher(x).logits, original(x))
    torch.testing.assert_close(problem.student(x).logits, found.student(x))
    found_by = selfcheck(problem, uniform(), found.last.training.sampler_state, {})
    assert all(0.0 <= (score["agreement"] or 0.0) <= 1.0 for score in found_by.values())


def stopped(folder: Path, at: int, name: str = "uniform", original: int = 1) -> Chain:
    """A chain of three that is asked to end at this line of all the curves, one for each step."""
    lines: list[int] = []

    def watch(problem: Problem) -> dict[str, float]:
        del problem
        lines.append(1)
        if len(lines) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    sampler = find("sampler", name, SAMPLERS)()
    students = [sized(6), partial(models.build, "digits_cnn", SPEC, width=4, bits=3), sized(4)]
    return chain(teacher(original), students, sampler, **SETTINGS, folder=folder, monitor=watch)


@pytest.mark.parametrize(("at", "stages"), [(2, 1), (STEPS + 1, 2), (2 * STEPS + 3, 3)])
def test_goes_on_exactly_from_any_stage(at: int, stages: int, tmp_path: Path) -> None:
    whole = stopped(tmp_path / "whole", 0)
    part = stopped(tmp_path / "part", at)
    assert [stage.training.status for stage in part.stages] == ["ok"] * (stages - 1) + ["interrupted"]
    assert {path.name for path in (tmp_path / "part").iterdir()} == {f"stage-{n}.checkpoint" for n in range(stages)}
    lines: list[int] = []
    found = stopped(tmp_path / "part", -1)
    assert len(found.stages) == len(whole.stages) == 3
    for a, b in zip(found.stages, whole.stages, strict=True):
        assert same(a.student, b.student)
        assert (a.training.steps, a.training.counts) == (STEPS, b.training.counts)
        lines.append(len(a.training.curve))
    assert lines == [STEPS] * 3


def test_a_stage_that_is_done_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, STEPS + 2)  # noticed a step later
    draw, drawn = type(uniform()).draw, []

    def counted(*given: Any, **options: Any) -> Any:
        drawn.append(1)
        return draw(*given, **options)

    monkeypatch.setattr(type(uniform()), "draw", counted)
    stopped(tmp_path, 0)
    assert len(drawn) == 2 * STEPS - 3
    stopped(tmp_path, 0)
    assert len(drawn) == 2 * STEPS - 3


def test_another_teacher_or_another_chain_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, STEPS + 1)
    with pytest.raises(ValueError, match=r"stage-0\.checkpoint belongs to another run"):
        stopped(tmp_path, 0, original=2)
    with pytest.raises(ValueError, match=r"stage-0\.checkpoint belongs to another run"):
        chain(teacher(), [sized(6), sized(4)], uniform(), **SETTINGS, folder=tmp_path)


def test_nobody_learns_from_a_stage_that_diverged() -> None:
    settings = {**SETTINGS, "optimiser": dfkd.Optimiser(learning_rate=1e30)}
    found = chain(teacher(), [sized(4), sized(4)], uniform(), **settings)
    assert [stage.training.status for stage in found.stages] == ["diverged"]


def test_by_command(run: Callable[..., Any], teachers: tuple[Path, Path], tmp_path: Path) -> None:
    """A generation in between, and a student of fewer bits; what is said is of the teacher itself."""
    out = tmp_path / "run"
    student = "student={model: digits_cnn, options: {width: 4, bits: 4}}"
    words = [f"teacher={teachers[0]}", student, "sampler={uniform: {labelling: eval}}", "budget={steps: 6, batch: 8}"]
    words.append("assistants=[{model: digits_cnn, options: {width: 6}}, digits_cnn]")
    said = run("distill", *words, "--out", out)
    assert said.status == 0, said.err
    card = json.loads((out / "card.json").read_text())
    assert len(card["assistants_not_a_test_score"]) == 2
    assert card["teacher_images"] == 3 * 6 * 8
    assert sorted(path.name for path in (out / "stages").iterdir()) == [f"stage-{n}.checkpoint" for n in range(3)]
    first, student_made = models.load(teachers[0]), models.load(out / "student.safetensors")
    assert student_made.get_parameter("conv1.weight").shape[0] == 4
    # the first column is 1000 rows of noise; others give the same KL, which hardly varies over such rows
    x = torch.rand(1000, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kl = float(kl_nats(student_made(x), first(x)).mean())
    found = next(iter(card["fidelity_not_a_test_score"].values()))["kl"]
    assert found == pytest.approx(kl, rel=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["assistants=[digit_cnn]"], "assistants[0]: student: model: unknown 'digit_cnn'; the nearest is 'digits_cnn'"),
        (["assistants=[{modle: x}]"], "assistants[0]: option: unknown 'modle'; the nearest is 'model'"),
        (["assistants=[digits_cnn]", "samplers=[uniform, gaussian]"], "assistants: expected one sampler with them"),
        (["assistants=[digits_cnn]", "optimiser.learning_rate=1e30"], "assistants[0]: training diverged"),
    ],
)
def test_commands_say_what_is_wrong(
    words: list[str], message: str, run: Callable[..., Any], teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    common = [f"teacher={teachers[0]}", "budget={steps: 6, batch: 8}", "device=cpu", "--out", tmp_path / "run"]
    given = words if any(word.startswith("samplers") for word in words) else [*words, "sampler=uniform"]
    said = run("distill", *given, *common)
    assert said.status != 0
    assert message in " ".join(said.err.split())


def test_needs_students() -> None:
    with pytest.raises(ValueError, match="students: expected at least one, found none"):
        chain(teacher(), [], uniform(), **SETTINGS)


def test_digests_are_of_what_taught(tmp_path: Path) -> None:
    found = stopped(tmp_path, 0)
    content = torch.load(tmp_path / "stage-1.checkpoint", weights_only=True)
    assert Probe(found.stages[0].student, SPEC).digest in content["identity"]
