"""Ensembles against their definition, behind a probe, in files, and as a teacher named in settings."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import dfkd
from dfkd import models
from dfkd.commands import _same_model
from dfkd.config import DistillConfig, TeacherConfig, dump, parse
from dfkd.data import load
from dfkd.losses import kl_nats
from dfkd.problem import Probe
from dfkd.resolve import another, teacher_of, teacher_spec
from dfkd.rng import initialised
from dfkd.schemes.ensemble import REFERENCE, RULES, Ensemble, combined, ensemble
from dfkd.types import InputSpec

SPEC = InputSpec((1, 8, 8), 4)
LOGITS = 3.0 * torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))


def net(seed: int, spec: InputSpec = SPEC, width: int = 4) -> nn.Module:
    with initialised(seed):
        module = models.build("digits_cnn", spec, width=width)
        module.train()(torch.rand(16, *spec.shape))
    return module.eval()


def temperature_of(rule: str) -> float | None:
    return 2.5 if rule == "mean_tempered" else None


def softmax(row: list[float], tau: float = 1.0) -> list[float]:
    weights = [math.exp(z / tau) for z in row]
    return [w / sum(weights) for w in weights]


def slow(rule: str, rows: list[list[float]], tau: float) -> list[float]:
    """Softened at tau: what the loss is to see, in Python floats."""
    m = len(rows)
    if rule == "mean_prob":
        mean = [sum(column) / m for column in zip(*map(softmax, rows), strict=True)]
        sharp = [p ** (1 / tau) for p in mean]
        return [p / sum(sharp) for p in sharp]
    if rule == "mean_tempered":
        return [sum(column) / m for column in zip(*(softmax(row, tau) for row in rows), strict=True)]
    return softmax([sum(column) / m for column in zip(*rows, strict=True)], tau)


# -- the rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("rule", RULES)
def test_softened_answers_equal_their_definition(rule: str, tau: float) -> None:
    found = (combined(LOGITS, rule, tau if rule == "mean_tempered" else None) / tau).softmax(dim=1)
    expected = [slow(rule, LOGITS[:, row].tolist(), tau) for row in range(5)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("copies", [1, 4])
def test_of_one_or_of_equal_members_is_the_member(rule: str, copies: int) -> None:
    found = combined(LOGITS[:1].expand(copies, -1, -1), rule, temperature_of(rule))
    torch.testing.assert_close(found.softmax(dim=1), LOGITS[0].softmax(dim=1))
    if rule == "mean_logit":
        torch.testing.assert_close(found, LOGITS[0])


@pytest.mark.parametrize("tau", [None, 2.5])
def test_means_of_probabilities_have_logits_that_are_logarithms_of_probabilities(tau: float | None) -> None:
    """So that losses on logits see no level that rises with the number of members."""
    for members in (1, 2, 3):
        found = combined(LOGITS[:members], "mean_prob" if tau is None else "mean_tempered", tau)
        torch.testing.assert_close((found / (tau or 1.0)).exp().sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("rule", RULES)
def test_neither_order_nor_levels_of_members_matter(rule: str) -> None:
    whole = combined(LOGITS, rule, temperature_of(rule)).softmax(dim=1)
    levels = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(2))
    moved = combined((LOGITS + 5.0 * levels)[[2, 0, 1]], rule, temperature_of(rule)).softmax(dim=1)
    torch.testing.assert_close(moved, whole)


@pytest.mark.parametrize("rule", RULES)
def test_stays_finite_where_members_are_certain_and_disagree(rule: str) -> None:
    logits = torch.tensor([[[1e4, 0.0, 0.0]], [[0.0, 1e4, 0.0]]], requires_grad=True)
    found = combined(logits, rule, temperature_of(rule))
    (slope,) = torch.autograd.grad(found[:, 0].sum(), logits)
    assert bool(found.isfinite().all())
    assert bool(slope.isfinite().all())
    torch.testing.assert_close(found.detach().softmax(dim=1), torch.tensor([[0.5, 0.5, 0.0]]))


def test_mean_tempered_has_the_gradient_of_a_term_for_each_member() -> None:
    tau, student = 2.5, torch.randn(5, 4, generator=torch.Generator().manual_seed(3)).requires_grad_(True)
    (one,) = torch.autograd.grad(kl_nats(student, combined(LOGITS, "mean_tempered", tau), tau).sum(), student)
    each = torch.stack([kl_nats(student, member, tau).sum() for member in LOGITS]).mean()
    torch.testing.assert_close(one, torch.autograd.grad(each, student)[0])


# -- as a model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_behind_a_probe_all_members_are_there(rule: str) -> None:
    members = [net(1), net(2, width=6)]
    probe = Probe(Ensemble(members, rule, temperature_of(rule)), SPEC)
    assert probe.capabilities == {"logits", "features", "batchnorm", "input_grad"}  # and no one penultimate layer
    x = torch.rand(5, *SPEC.shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    with probe.taps("members.0.conv1", "members.1.conv3"), probe.batchnorm_inputs() as seen:
        outputs = probe(x)
    assert outputs.features["members.0.conv1"].shape == (5, 4, 8, 8)
    assert outputs.features["members.1.conv3"].shape == (5, 12, 4, 4)
    torch.testing.assert_close(outputs.features["members.0.conv1"], members[0].get_submodule("conv1")(x))
    assert [layer.name for layer in seen] == [f"members.{m}.bn{b}" for m in (0, 1) for b in (1, 2, 3)]
    torch.testing.assert_close(
        outputs.logits, combined(torch.stack([member(x) for member in members]), rule, temperature_of(rule))
    )
    (slope,) = torch.autograd.grad(outputs.logits[:, 0].sum(), x)
    assert bool((slope.flatten(1).abs().sum(dim=1) > 0).all())
    assert (probe.counts["synthesise"]["forward"], probe.counts["synthesise"]["backward"]) == (5, 5)
    again = probe(x.detach(), "batch").logits  # BatchNorm of all members by the batch
    assert float((again - outputs.logits).detach().abs().max()) > 1e-3
    assert torch.equal(probe(x.detach()).logits, outputs.logits)


def test_stands_in_the_mode_of_its_members() -> None:
    assert not Ensemble([net(1), net(2)]).training
    module = Ensemble([net(1), net(2).train()])
    assert module.training
    assert not module.members[0].training


def test_saved_and_loaded_without_pickle(tmp_path: Path) -> None:
    plain, scaled = net(1), models.Normalised(net(2, width=6), [0.3], [0.7])
    module = Ensemble([plain, scaled], "mean_tempered", 4.0)
    described = [
        {"model": "digits_cnn", "options": {"width": 4}, "normalise": None},
        {"model": "digits_cnn", "options": {"width": 6}, "normalise": [scaled.mean.tolist(), scaled.std.tolist()]},
    ]
    options = {"members": described, "rule": "mean_tempered", "temperature": 4.0}
    models.save(tmp_path / "e.safetensors", module, reference=REFERENCE, spec=SPEC, options=options)
    again, x = models.load(tmp_path / "e.safetensors"), torch.rand(3, *SPEC.shape)
    assert torch.equal(again(x), module(x))
    assert Probe(again, SPEC).digest == Probe(module, SPEC).digest


class Wide(nn.Module):
    """Not for every image size."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.flatten(1))
        return y


def test_names_members_that_do_not_fit() -> None:
    x = torch.rand(2, *SPEC.shape)
    with pytest.raises(ValueError, match=r"\(2, 4\) of members.0, \(2, 5\) of members.1"):
        Ensemble([net(1), Wide(64, 5)])(x)
    with pytest.raises(ValueError, match=r"teacher: cannot be asked images of .*members.1 \(Wide\): .*mat1 and mat2"):
        Probe(Ensemble([net(1), Wide(49, 4)]), SPEC).check()


@pytest.mark.parametrize(
    ("members", "rule", "temperature", "message"),
    [
        ([], "mean_prob", None, "members: expected at least one, found none"),
        (["digits_cnn"], "mean_prob", None, r"members\[0\]: expected a torch.nn.Module, found str"),
        ([nn.Flatten()], "mean_probs", None, "rule: unknown 'mean_probs'; the nearest is 'mean_prob'"),
        ([nn.Flatten()], "mean_prob", 4.0, "temperature: expected none with mean_prob, found 4.0"),
        ([nn.Flatten()], "mean_logit", 1.0, "temperature: expected none with mean_logit, found 1.0"),
        (
            [nn.Flatten()],
            "mean_tempered",
            None,
            "temperature: expected a number > 0, .* with mean_tempered, found None",
        ),
        ([nn.Flatten()], "mean_tempered", 0.0, "temperature: expected a number > 0, .* found 0.0"),
        ([nn.Flatten()], "mean_tempered", math.nan, "temperature: expected a number > 0, .* found nan"),
        ([nn.Flatten()], "mean_tempered", True, "temperature: expected a number > 0, .* found True"),
    ],
)
def test_says_what_is_wrong(members: Any, rule: str, temperature: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(members, rule, temperature)


def test_says_which_description_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"members\[1\]: model: unknown 'digit_cnn'; the nearest is 'digits_cnn'"):
        ensemble(SPEC, [{"model": "digits_cnn"}, {"model": "digit_cnn"}])


# -- in settings -------------------------------------------------------------------------------------------------------


def settings(**given: Any) -> TeacherConfig:
    config: TeacherConfig = parse(TeacherConfig, given, "teacher")
    return config


def test_settings_are_read_back_as_written(teachers: tuple[Path, Path]) -> None:
    config = settings(members=[str(teachers[0]), {"weights": str(teachers[1])}], rule="mean_tempered", temperature=4)
    assert parse(TeacherConfig, yaml.safe_load(yaml.safe_dump(dump(config)))) == config
    assert not {"members", "rule", "temperature"} & set(dump(TeacherConfig()))  # older folders go on
    assert "members" not in repr(config)


def test_of_files(teachers: tuple[Path, Path], tmp_path: Path) -> None:
    config, x = settings(members=list(map(str, teachers)), rule="mean_logit"), torch.rand(3, *SPEC.shape)
    assert teacher_spec(config, "teacher").shape == SPEC.shape
    module = teacher_of(config, tmp_path / "both.safetensors", "teacher")
    expected = Ensemble([models.load(path) for path in teachers], "mean_logit")
    assert torch.equal(module(x), expected(x))
    assert torch.equal(models.load(tmp_path / "both.safetensors")(x), expected(x))
    # the student that goes with it is one network
    one = {"model": "digits_cnn", "options": {"width": 4}}
    assert _same_model({"members": list(map(str, teachers))}) == one
    assert _same_model(str(tmp_path / "both.safetensors")) == one


TRAINED: dict[str, Any] = {"model": "digits_cnn", "options": {"width": 4}, "budget": {"steps": 6, "batch": 16}}


def test_trained_here_each_with_its_own_seed(quadrants: Path, tmp_path: Path) -> None:
    config = settings(**TRAINED, data=str(quadrants), members=[{"seed": 0}, {"seed": 1, "options": {"width": 6}}])
    file, x = tmp_path / "teacher.safetensors", torch.rand(3, *SPEC.shape)
    module = teacher_of(config, file, "teacher")
    alone = [
        teacher_of(settings(**TRAINED, data=str(quadrants)), None, "teacher"),
        teacher_of(settings(**{**TRAINED, "options": {"width": 6}}, data=str(quadrants), seed=1), None, "teacher"),
    ]
    assert torch.equal(module(x), Ensemble(alone)(x))
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.safetensors"]  # no checkpoint is left
    assert torch.equal(teacher_of(config, file, "teacher")(x), module(x))


def test_trained_on_no_more_rows_than_the_limit(quadrants: Path, tmp_path: Path) -> None:
    few = load(quadrants, limit=8)
    assert few.train.y is not None
    assert few.test.y is not None
    arrays = {"x_train": few.train.x, "y_train": few.train.y, "x_test": few.test.x, "y_test": few.test.y}
    classes = np.array(few.spec.class_names)
    np.savez(
        tmp_path / "few.npz",
        allow_pickle=False,
        classes=classes,
        **{name: value[:, 0].numpy() if value.ndim == 4 else value.numpy() for name, value in arrays.items()},
    )
    config, x = settings(**TRAINED, data=str(quadrants), limit=8), torch.rand(3, *SPEC.shape)
    limited = teacher_of(config, None, "teacher")(x)
    assert torch.equal(limited, teacher_of(settings(**TRAINED, data=str(tmp_path / "few.npz")), None, "teacher")(x))
    assert not torch.equal(limited, teacher_of(settings(**TRAINED, data=str(quadrants)), None, "teacher")(x))
    assert dump(config)["limit"] == 8
    assert "limit" not in dump(settings(**TRAINED))  # older folders go on
    with pytest.raises(ValueError, match=r"limit: expected an integer >= 1, found 0"):
        settings(limit=0)


def test_a_member_that_is_done_is_not_trained_again(
    quadrants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = (
        settings(**TRAINED, data=str(quadrants), members=[{"seed": 0}, {"seed": 1}]),
        tmp_path / "t.safetensors",
    )
    expected = teacher_of(config, tmp_path / "whole.safetensors", "teacher")
    from dfkd.schemes import supervised

    teach: Callable[..., Any] = supervised.teach
    seeds: list[tuple[int, int]] = []
    monkeypatch.setattr(supervised, "teach", lambda *a, **o: _stopping(teach, seeds, *a, **o))
    with pytest.raises(KeyboardInterrupt):
        teacher_of(config, file, "teacher")
    found = teacher_of(config, file, "teacher")
    assert seeds == [(0, 0), (1, 0), (0, 1), (1, 0)]  # the second time the first member's checkpoint was there
    x = torch.rand(3, *SPEC.shape)
    assert torch.equal(found(x), expected(x))


def _stopping(teach: Callable[..., Any], seeds: list[tuple[int, int]], *args: Any, **options: Any) -> Any:
    """Trains, but is stopped before the first training of the second member."""
    seeds.append((options["seed"], int(options["checkpoint"].exists())))
    if len(seeds) == 2:
        raise KeyboardInterrupt
    return teach(*args, **options)


def test_the_other_teacher_has_no_seed_in_common(quadrants: Path, teachers: tuple[Path, Path]) -> None:
    config = settings(**TRAINED, data=str(quadrants), members=[{"seed": 2}, {"seed": 4}])
    found = another(config)
    assert found is not None
    assert [entry["seed"] for entry in found.members] == [5, 7]
    assert another(settings(data=str(quadrants), members=[str(teachers[0]), "digits_cnn"])) is None
    alone = another(settings(**TRAINED, data=str(quadrants), seed=3))
    assert alone is not None
    assert alone.seed == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"members": [{"seed": 0}, {}]}, r"teacher.members\[1\]: expected another teacher than teacher.members\[0\]"),
        ({"members": [3]}, r"teacher.members\[0\]: expected a weights file or settings of one model, found 3"),
        ({"members": [{"members": []}]}, r"teacher.members\[0\]: expected a weights file or settings of one model"),
        ({"members": [{"sead": 0}]}, r"teacher.members\[0\]: option: unknown 'sead'; the nearest is 'seed'"),
        ({"members": [{"model": None}]}, r"teacher.members\[0\]: expected weights, or a model and data"),
        ({"members": [{}], "rule": "mean"}, "teacher: rule: unknown 'mean'; the nearest is 'mean_"),
        ({"members": [{}], "rule": "mean_tempered"}, "teacher.*temperature: expected a number > 0"),
        ({"rule": "mean_logit"}, "teacher.*: expected members to combine by mean_logit, found none"),
        ({"members": [{}], "weights": "a.safetensors"}, "teacher.*weights: expected none beside members"),
        (
            {"members": [{}, {"size": 12}]},
            r"expected images of one shape .*\(1, 8, 8\) with 4 of members\[0\], \(1, 12",
        ),
    ],
)
def test_says_what_is_wrong_with_settings(quadrants: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        teacher_of(settings(**{**TRAINED, "data": str(quadrants), **given}), None, "teacher")


def test_names_files_of_other_classes(teachers: tuple[Path, Path], tmp_path: Path) -> None:
    spec = InputSpec(SPEC.shape, 5)
    models.save(tmp_path / "five.safetensors", net(3, spec), reference="digits_cnn", spec=spec, options={"width": 4})
    with pytest.raises(
        ValueError, match=r"teacher.members: expected .* with 4 of members\[0\], .* with 5 of members\[1\]"
    ):
        teacher_of(settings(members=[str(teachers[0]), str(tmp_path / "five.safetensors")]), None, "teacher")


# -- in commands -------------------------------------------------------------------------------------------------------


def test_taught_evaluated_and_distilled(run: Callable[..., Any], quadrants: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.safetensors"
    budget = "budget={steps: 60, batch: 16}"
    words = ["model=digits_cnn", "options.width=4", f"data={quadrants}", "members=[{seed: 0}, {seed: 1}]"]
    said = run("teach", *words, budget, "--out", file)
    assert said.status == 0, said.err
    said = run("evaluate", f"weights={file}", f"data={quadrants}", "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["accuracy"] > 0.5
    out = tmp_path / "run"
    said = run("distill", f"teacher={file}", "sampler=uniform", "budget={steps: 4, batch: 8}", "--out", out)
    assert said.status == 0, said.err
    assert type(models.load(out / "student.safetensors")).__name__ == "DigitsCNN"


def test_compared_with_a_control(run: Callable[..., Any], quadrants: Path, tmp_path: Path) -> None:
    teacher = {**TRAINED, "data": str(quadrants), "members": [{"seed": 0}, {"seed": 1}], "rule": "mean_prob"}
    file, out = tmp_path / "compare.yaml", tmp_path / "out"
    file.write_text(
        yaml.safe_dump(
            {
                "teacher": teacher,
                "student": {"model": "digits_cnn", "options": {"width": 4, "bits": 4}},
                "samplers": ["uniform"],
                "budget": {"steps": 4, "batch": 8},
                "evaluate": ["test"],
                "seeds": [0],
            }
        )
    )
    said = run("compare", file, "--out", out, "--workers", 1)
    assert said.status == 0, said.err
    first, control = (models.load(out / f"{name}.safetensors") for name in ("teacher", "control_teacher"))
    assert isinstance(first, Ensemble)
    assert isinstance(control, Ensemble)
    student = models.load(out / "runs" / "uniform-s0" / "student.safetensors")
    assert "conv1.input_range" in student.state_dict()
    assert (first.rule, len(first.members)) == ("mean_prob", 2)
    # members of the second are trained with seeds 2 and 3
    pairs = [(a, b) for a in first.members for b in control.members]
    assert not any(torch.equal(a.get_parameter("conv1.weight"), b.get_parameter("conv1.weight")) for a, b in pairs)


def test_is_a_teacher_in_python() -> None:
    teacher = Ensemble([net(1), net(2)])
    found = dfkd.distill(
        teacher, "digits_cnn", dfkd_sampler(), spec=SPEC, budget=dfkd.Budget(steps=4, batch=8), device="cpu"
    )
    assert found.training.status == "ok"
    assert all(p.requires_grad for p in teacher.parameters())
    assert parse(DistillConfig, {"teacher": {"members": ["a.safetensors"]}, "student": "x", "sampler": "uniform"})


def dfkd_sampler() -> Any:
    from dfkd.registry import SAMPLERS, find

    return find("sampler", "uniform", SAMPLERS)()
