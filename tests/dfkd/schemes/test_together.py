"""What every scheme must do: one ordinary student at the end, exact continuation, any sampler, any objective."""

import json
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd import config, models
from dfkd.problem import Problem
from dfkd.registry import SAMPLERS, SCHEMES, find
from dfkd.rng import initialised
from dfkd.schemes.mutual import Mutual
from dfkd.schemes.offline import Distilled, make_student, make_trained
from dfkd.schemes.together import Scheme, Together
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STEPS = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "mutual": {"members": 3},
    "one": {"stem": "bn2", "branches": 2},
    "deep_to_shallow": {"exits": ["bn1", "conv3"], "features": 0.5, "attention": 1.0},
    "mean_teacher": {"momentum": 0.8},
}
EVERY = pytest.mark.parametrize("name", SETTINGS)
ADVERSARIAL = {"adversarial": {"base": "uniform", "steps": 1}}


def scheme(name: str) -> Scheme:
    return config.scheme({name: SETTINGS[name]})


def net(seed: int, width: int) -> nn.Module:
    with initialised(seed):
        return models.build("digits_cnn", SPEC, width=width)


def student() -> nn.Module:
    return models.build("digits_cnn", SPEC, width=2)


def run(
    name: str,
    checkpoint: Path | None = None,
    stop_at: int = 0,
    steps: int = STEPS,
    sampler: Any = "uniform",
    objective: dict[str, Any] | None = None,
) -> Distilled:
    """Ends by a signal where the curve has so many lines: one for each step."""
    lines: list[int] = []

    def monitor(problem: Problem) -> dict[str, float]:
        del problem
        lines.append(1)
        if len(lines) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    return dfkd.distill(
        net(1, width=3),
        Together(student, scheme(name)),
        config.sampler(sampler)[1],
        spec=SPEC,
        objective=config.objective(objective or {"kl": {"temperature": 2.0}}),
        budget=dfkd.Budget(batch=8, steps=steps),
        device="cpu",
        seed=3,
        checkpoint=checkpoint,
        monitor=monitor,
    )


def flat(state: Any, where: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their place."""
    if not isinstance(state, (dict, list)):
        return {where: state}
    entries = state.items() if isinstance(state, dict) else enumerate(state)
    return {place: leaf for key, part in entries for place, leaf in flat(part, f"{where}/{key}").items()}


def saved(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["ranks"][0]
    return flat({key: state[key] for key in ("student", "adapters", "optimiser", "sampler", "counts", "steps")})


def equal(found: Any, wanted: Any) -> bool:
    return torch.equal(found, wanted) if isinstance(wanted, Tensor) else bool(found == wanted)


def test_every_scheme_of_the_table_is_here() -> None:
    assert set(SETTINGS) == set(SCHEMES)
    assert all(find("scheme", name, SCHEMES).name == name for name in SCHEMES)


@EVERY
def test_interrupted_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    expected = run(name, whole, sampler=ADVERSARIAL)
    stopped = run(name, halved, stop_at=2, sampler=ADVERSARIAL)
    assert stopped.training.status == "interrupted"
    assert 2 <= stopped.training.steps < STEPS
    resumed = run(name, halved, sampler=ADVERSARIAL)
    assert resumed.training.status == expected.training.status == "ok"
    found, wanted = saved(halved), saved(whole)
    assert found.keys() == wanted.keys()
    assert [place for place, value in wanted.items() if not equal(found[place], value)] == []
    for key, value in expected.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[key], value), key


@EVERY
def test_what_is_kept_is_an_ordinary_student(name: str) -> None:
    done = run(name, steps=2)
    assert type(done.student) is type(student())
    assert done.problem.student.module is done.student
    fresh = student().state_dict()
    assert {key: value.shape for key, value in done.student.state_dict().items()} == {
        key: value.shape for key, value in fresh.items()
    }
    assert all(parameter.requires_grad for parameter in done.student.parameters())
    assert not any(part.training or part._forward_hooks for part in done.student.modules())
    assert done.student(torch.rand(2, *SPEC.shape)).shape == (2, 4)


@EVERY
def test_the_teacher_stays_as_it_was_and_gets_no_gradient(name: str) -> None:
    teacher = run(name, steps=2).problem.teacher.module
    untaught = net(1, width=3).state_dict()
    assert all(torch.equal(value, untaught[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@EVERY
def test_the_student_starts_as_it_would_alone(name: str) -> None:
    wrapped = Together(student, scheme(name))
    alone = make_student(student, SPEC, 5).state_dict()
    for built in (make_student(wrapped, SPEC, 5), wrapped.scheme.keep(make_trained(wrapped, SPEC, 5))):
        assert all(torch.equal(value, alone[key]) for key, value in built.state_dict().items())
    again, other = (make_trained(wrapped, SPEC, seed).state_dict() for seed in (5, 6))
    first = make_trained(wrapped, SPEC, 5).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    weights = [key for key in first if key.endswith("weight") and first[key].unique().numel() > 1]
    assert not any(torch.equal(first[key], other[key]) for key in weights)


@EVERY
def test_all_of_it_learns(name: str) -> None:
    """Every parameter that asks for a gradient moves within a few steps, and the loss falls."""
    before = make_trained(Together(student, scheme(name)), SPEC, 3)
    held: list[nn.Module] = []

    def look(problem: Problem) -> dict[str, float]:
        held.append(problem.student.module)
        return {}

    done = dfkd.distill(
        net(1, width=3),
        Together(student, scheme(name)),
        find("sampler", "uniform", SAMPLERS)(),
        spec=SPEC,
        budget=dfkd.Budget(batch=16, steps=40),
        device="cpu",
        seed=3,
        monitor=look,
    )
    after = dict(held[-1].named_parameters())
    still = [key for key, value in before.named_parameters() if torch.equal(value, after[key])]
    assert still == []
    curve = [line["loss"] for line in done.training.curve]
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


@EVERY
@pytest.mark.parametrize(
    "objective",
    [
        {"features": {"pairs": [["bn2", "bn1"]]}, "kl": {}},
        {"jacobian": {"directions": 1}, "kl": {}},
    ],
    ids=["features", "slopes"],
)
def test_any_objective_anchors_it(name: str, objective: dict[str, Any]) -> None:
    assert run(name, steps=2, objective=objective).training.status == "ok"


@pytest.mark.parametrize("name", ["one", "deep_to_shallow"])
def test_parts_that_are_no_student_need_a_loss_on_logits(name: str) -> None:
    with pytest.raises(ValueError, match="objective: expected a loss on logits alone, such as kl, found jacobian"):
        scheme(name).objective(config.objective({"jacobian": {}}))


@EVERY
def test_it_learns_in_half_precision(name: str) -> None:
    done = dfkd.distill(
        net(1, width=3),
        Together(student, scheme(name)),
        find("sampler", "uniform", SAMPLERS)(),
        spec=SPEC,
        budget=dfkd.Budget(batch=8, steps=3),
        device="cpu",
        precision="bfloat16",
    )
    assert done.training.status == "ok"
    assert {value.dtype for value in done.student.parameters()} == {torch.float32}


@EVERY
def test_it_goes_to_another_process_and_into_a_folder_and_back(name: str) -> None:
    made = scheme(name)
    assert pickle.loads(pickle.dumps(made)) == made
    written = {"model": "digits_cnn", "scheme": {name: SETTINGS[name]}}
    parsed = config.parse(config.StudentConfig, written)
    assert config.scheme(config.dump(parsed)["scheme"]) == made
    assert "scheme" not in config.dump(config.parse(config.StudentConfig, {"model": "digits_cnn"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("mutal", "student: scheme: unknown 'mutal'; the nearest is 'mutual'"),
        ({"mutual": {"member": 3}}, "student: scheme.mutual: option: unknown 'member'; the nearest is 'members'"),
        ({"mutual": {"members": 1}}, "student: scheme.mutual: members: expected an integer >= 2, found 1"),
        ({"one": {}}, "student: scheme.one: stem is missing"),
        ({"one": {"stem": "bn2", "branches": 1}}, "branches: expected an integer >= 2, found 1"),
        ({"mean_teacher": {"momentum": 1.0}}, "momentum: expected a number >= 0 and < 1, found 1.0"),
        ({"mean_teacher": {"keeps": "both"}}, "keeps: expected one of average, online, found 'both'"),
        ({"deep_to_shallow": {"exits": []}}, "exits: expected different module paths of the student"),
        ({"deep_to_shallow": {"exits": ["bn1"], "share": 2.0}}, "share: expected a number from 0 to 1, found 2.0"),
        ({"mutual": {"weight": -1.0}}, "weight: expected a finite number >= 0, found -1.0"),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.parse(config.StudentConfig, {"model": "digits_cnn", "scheme": settings}, "student")


def test_a_scheme_is_no_student_and_one_is_enough() -> None:
    with pytest.raises(ValueError, match="scheme: expected a scheme, such as Mutual"):
        Together("digits_cnn", Mutual)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="student: expected one that no other scheme trains"):
        Together(Together("digits_cnn", Mutual()), Mutual())  # type: ignore[arg-type]


def test_another_scheme_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    run("mutual", tmp_path / "state", stop_at=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "mutual", {"members": 3, "weight": 2.0})
        with pytest.raises(ValueError, match="state"):
            run("mutual", tmp_path / "state")


def test_distil_and_compare_by_their_words(
    tmp_path: Path, teachers: tuple[Path, Path], run: Callable[..., Any]
) -> None:
    words = [f"teacher={teachers[0]}", "student=digits_cnn", "budget.steps=3", "budget.batch=8"]
    words += ["student.scheme.mutual.members=2", "student.options.width=3"]
    said = run("distill", *words, "sampler=uniform", "--out", tmp_path / "one")
    assert said.status == 0, said.err
    kept = dfkd.load(tmp_path / "one" / "student.safetensors")
    assert type(kept) is type(student())
    assert json.loads((tmp_path / "one" / "card.json").read_text())["status"] == "ok"
    words += ["samplers=[uniform]", "evaluate={columns: [uniform], rows: 16}", "seeds=[0]", "control_teacher=null"]
    said = run("compare", teachers_file(tmp_path), *words, "--out", tmp_path / "two")
    assert said.status == 0, said.err
    file = next((tmp_path / "two" / "runs").glob("*/student.safetensors"))
    first, second = kept.state_dict(), dfkd.load(file).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())  # one student, by either way
    said = run(
        "compare",
        teachers_file(tmp_path),
        *words[:-6],
        "student={model: digits_cnn}",
        *words[-4:],
        "--out",
        tmp_path / "two",
    )
    assert said.status == 2
    assert "student" in said.err


def test_the_best_of_several_samplers(tmp_path: Path, teachers: tuple[Path, Path], run: Callable[..., Any]) -> None:
    words = [f"teacher={teachers[0]}", "student={model: digits_cnn, scheme: {one: {stem: bn2}}}", "budget.steps=2"]
    said = run("distill", *words, "budget.batch=8", "samplers=[uniform, gaussian]", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert type(dfkd.load(tmp_path / "out" / "student.safetensors")) is type(student())


def teachers_file(folder: Path) -> Path:
    """A file of settings, so that nothing of the demonstration is laid under the words."""
    (folder / "own.yaml").write_text("objective: {kl: {temperature: 4}}\n")
    return folder / "own.yaml"
