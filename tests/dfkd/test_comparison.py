"""Comparisons end to end, on a problem of seconds: what is written, continued, refused, and the same however it ran."""

import copy
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import dfkd as package
from dfkd import Budget, Evaluation, InputSpec, Optimiser, cells, models, scoring
from dfkd.comparison import Comparison, compare
from dfkd.data import Dataset, ImageSet, load
from dfkd.fidelity import QUALITY, Reference, columns, feature_scores, metrics, recalibrated
from dfkd.interfaces import Preset
from dfkd.losses import CKA, Jacobian, LabelCrossEntropy, LogitMSE, combine
from dfkd.plan import Settings, some_rows
from dfkd.problem import Probe
from samplers import (
    CMI,
    NAYER,
    DeepInversion,
    FastDFKD,
    Gaussian,
    Generative,
    Mixture,
    Mixup,
    Pooled,
    Real,
    SpaceshipNet,
    Uniform,
)

Command = Callable[..., Any]
Network = Callable[..., nn.Module]
Lines = list[dict[str, Any]]

TIMES = ("seconds", "synthesise_seconds")
FIELDS = {
    "sampler", "data_free", "seed", "evaluation", "metric", "value", "steps", "teacher_images", "seconds", "status",
    "kind", "synthesise_forward", "synthesise_backward", "label_forward", "label_backward", "evaluate_forward",
    "synthesise_seconds", "labelling", "teacher_batchnorm", "student_train", "student_batchnorm",
}  # fmt: skip


def settings(folder: Path, quadrants: Path, teachers: tuple[Path, Path], **changed: Any) -> Path:
    """A YAML file: three samplers, two seeds, a control at the first, every kind of column."""
    wanted: dict[str, Any] = {
        "teacher": {"weights": str(teachers[0]), "data": str(quadrants)},
        "control_teacher": str(teachers[1]),
        "student": {"model": "digits_cnn", "options": {"width": 4}},
        "budget": {"steps": 6, "batch": 16},
        "samplers": [
            {"real": {"data": str(quadrants)}},
            {"pooled": {"base": {"deep_inversion": {"steps": 3, "batch": 16}}, "round": 16, "label": "inverted"}},
            {"adversarial": {"base": {"pooled": {"base": {"uniform": {"labelling": "eval"}}}}, "label": "a <b> & é"}},
        ],
        "evaluate": {"rows": 20, "corruptions": ["noise@3"], "epsilons": [8], "worst_case_steps": 2,
                     "worst_case_restarts": 1},
        "seeds": [0, 1],
        "control_seeds": 1,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(wanted | changed), encoding="utf-8")
    return folder / "settings.yaml"


def results(folder: Path) -> Lines:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def numbers(lines: Lines) -> Lines:
    """What must not depend on how a comparison was run."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def stamps(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, quadrants: Path, teachers: tuple[Path, Path]) -> Path:
    """The folder of a finished comparison, not to be written to."""
    from dfkd import commands

    folder = tmp_path_factory.mktemp("comparison")
    commands.compare([str(settings(folder, quadrants, teachers))], folder / "out", 1, False)
    return folder / "out"


LABELS = ("real", "inverted", "a <b> & é")


@pytest.mark.parametrize("name", ["manifest.json", "results.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "\n[]\n"])
def test_a_damaged_folder_is_reported_in_a_line_alone(
    done: Path, run: Command, tmp_path: Path, name: str, content: str
) -> None:
    copied = shutil.copytree(done, tmp_path / "copied")
    (copied / name).write_text(content)
    page = (copied / "report.html").read_bytes()
    said = run("report", copied)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"dfkd: {copied / name}")
    assert (copied / "report.html").read_bytes() == page


# -- what is written ---------------------------------------------------------------------------------------------------


def test_everything_is_written(done: Path) -> None:
    names = {str(path.relative_to(done)) for path in done.rglob("*") if path.is_file()}
    for label in LABELS:
        for seed in (0, 1):
            run = f"runs/{label}-s{seed}"
            assert names >= {f"{run}/{name}" for name in ("student.safetensors", "curve.jsonl", "rows.npz")}
            assert (f"{run}/control.safetensors" in names) == (seed == 0)
            assert f"banks/{label}-s{seed}.safetensors" in names
    assert names >= {"config.yaml", "manifest.json", "results.jsonl", "report.html"}
    assert not [name for name in names if name.endswith((".tmp", "checkpoint"))]


def test_result_lines_have_all_fields(done: Path) -> None:
    lines = results(done)
    assert all(set(line) >= FIELDS for line in lines)
    keys = [(line["sampler"], line["seed"], line["evaluation"], line["metric"]) for line in lines]
    assert len(set(keys)) == len(keys)
    assert {line["sampler"] for line in lines} == set(LABELS)
    assert {line["status"] for line in lines} == {"ok"}
    assert {line["steps"] for line in lines} == {6}
    assert {line["sampler"]: line["data_free"] for line in lines} == dict(zip(LABELS, (False, True, True), strict=True))
    kinds = {line["sampler"]: line["kind"] for line in lines}
    assert kinds == dict(zip(LABELS, ("real", "pooled", "adversarial"), strict=True))
    assert all(line["teacher_images"] == sum(v for k, v in line.items() if k.startswith(("synth", "label_")) and k[-1] == "d" and "seconds" not in k) for line in lines)  # fmt: skip  # noqa: E501
    cost = {line["sampler"]: line["label_forward"] for line in lines}
    assert cost["real"] == 6 * 16


def test_every_column_is_scored_for_every_student(done: Path) -> None:
    expected = {"test", "noise@3", "uniform", "worst_case@8", "own_draws", *(f"draws of {label}" for label in LABELS)}
    for label in LABELS:
        for seed in (0, 1):
            mine = [line for line in results(done) if (line["sampler"], line["seed"]) == (label, seed)]
            assert {line["evaluation"] for line in mine} == expected
            test = {line["metric"]: line["value"] for line in mine if line["evaluation"] == "test"}
            assert set(test) >= {"agreement", "agreement@3", "kl", "reverse_kl", "js", "total_variation", "accuracy"}
            assert set(test) >= {"attainable_low", "attainable_high", "nll", "ece", "brier"}
            assert 0.0 <= test["agreement"] <= 1.0
            uniform = {line["metric"] for line in mine if line["evaluation"] == "uniform"}
            assert not uniform & {"accuracy", "nll", "ece", "brier"}


def test_features_are_compared_where_logits_are(done: Path, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    """Penultimate features by default; recomputed from what is saved, on all 24 test rows."""
    mine = [line for line in results(done) if line["metric"] in ("cka@penultimate", "fkd@penultimate")]
    everywhere = {line["evaluation"] for line in results(done)} - {"own_draws"}
    assert {line["evaluation"] for line in mine} == everywhere
    data = load(str(quadrants))
    probes = [Probe(package.load(f), data.spec) for f in (done / "runs/real-s1/student.safetensors", teachers[0])]
    student, teacher = (columns.answers(p, data.test.x, data.spec, taps=("penultimate",)).features for p in probes)
    expected = feature_scores(student["penultimate"], teacher["penultimate"])
    for name in ("cka", "fkd"):
        assert value(results(done), "real", 1, "test", f"{name}@penultimate") == pytest.approx(expected[name], abs=1e-6)
    assert "CKA penultimate" in (done / "report.html").read_text(encoding="utf-8")


def test_layers_are_named_in_pairs_and_found_before_any_work(tmp_path: Path, network: Network) -> None:
    def evaluated(*pairs: tuple[str, str], rows: int = 1000) -> Evaluation:
        return Evaluation(columns=("uniform",), rows=8, features=pairs, feature_rows=rows)

    words = {"student": "digits_cnn", "budget": Budget(steps=1, batch=4)}
    lines = small(
        tmp_path / "a", network, [Uniform()], evaluate=evaluated(("conv1", "conv2"), ("bn3", "bn3")), **words
    ).lines
    found = {line.metric: line.value for line in lines if "@" in line.metric and "agreement" not in line.metric}
    assert set(found) == {"cka@conv1=conv2", "fkd@conv1=conv2", "cka@bn3", "fkd@bn3"}
    few = small(tmp_path / "b", network, [Uniform()], evaluate=evaluated(("bn3", "bn3"), rows=4), **words).lines
    assert next(line.value for line in few if line.metric == "cka@bn3") != found["cka@bn3"]
    assert not [
        m
        for m in small(tmp_path / "c", network, [Uniform()], evaluate=evaluated(), **words).summary.metrics
        if "cka" in m
    ]
    for pair, who in ((("conv9", "bn3"), "student"), (("bn3", "conv9"), "teacher")):
        with pytest.raises(ValueError, match=f"module path of the {who}: unknown 'conv9'; the nearest is 'conv"):
            small(tmp_path / "d", network, [Uniform()], evaluate=evaluated(pair), **words)
    assert not (tmp_path / "d" / "out").exists()
    with pytest.raises(ValueError, match=r"features: expected \[\[student's module path, teacher's\], ...\], found"):
        Evaluation(features=(("a",),))  # type: ignore[arg-type]


def test_losses_measure_students_that_were_trained_without_them(tmp_path: Path, network: Network) -> None:
    """On every column; the Jacobians' distance is asked of the saved student once more."""
    words: dict[str, Any] = {"student": "digits_cnn", "budget": Budget(steps=1, batch=4)}
    evaluate = Evaluation(columns=("uniform",), rows=8, losses={"slopes": Jacobian(), "labels": LabelCrossEntropy()})
    lines = small(tmp_path / "a", network, [Uniform()], evaluate=evaluate, **words).lines
    found = {line.metric: line.value for line in lines if line.metric.startswith("loss@")}
    assert found["loss@labels"] is None  # noise has none
    run = tmp_path / "a" / "out" / "runs" / "uniform-s0"
    x = columns.uniform_column(SPEC, 8, seed=0).x.float() / 255.0
    total = 0.0
    student = package.load(run / "student.safetensors")
    for row in x:
        ours, theirs = (
            torch.autograd.functional.jacobian(lambda one, module=module: module(one[None])[0], row).flatten(1)
            for module in (student.eval(), network().eval())
        )
        total += float((ours - theirs).square().sum())
    assert found["loss@slopes"] == pytest.approx(total / 8, rel=1e-4)
    assert "slopes, as a measure" in (tmp_path / "a" / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"cka": CKA("conv9", "bn3")}, "module path of the student: unknown 'conv9'; the nearest is 'conv"),
        ({"slopes": Jacobian}, r"losses.slopes: expected a loss such as Jacobian\(\), found <class"),
    ],
)
def test_losses_that_cannot_measure_are_found_before_any_work(
    tmp_path: Path, network: Network, losses: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, network, [Uniform()], student="digits_cnn", evaluate=Evaluation(losses=losses))
    assert not (tmp_path / "out").exists()


def test_other_batchnorm_modes_stand_beside_the_one_compared_in(tmp_path: Path, network: Network) -> None:
    """Recalibrated on a named sampler's draws, and in `batch`: recomputed from what is saved."""
    evaluate = Evaluation(
        columns=("uniform",), rows=30, beside=("batch", "recalibrated", "eval"), recalibrate_on="noise"
    )
    words: dict[str, Any] = {"student": "digits_cnn", "evaluate": evaluate, "budget": Budget(steps=8, batch=8)}
    found = small(tmp_path, network, {"noise": Uniform("eval"), "grey": Gaussian()}, **words)
    lines = [line for line in found.lines if (line.sampler, line.evaluation) == ("grey", "uniform")]
    values = {line.metric: line.value for line in lines}
    assert {line.student_batchnorm for line in lines if line.metric in ("agreement", "kl")} == {"eval"}
    for mode in ("batch", "recalibrated"):
        told = {line.student_batchnorm for line in lines if line.metric in (f"agreement_{mode}", f"kl_{mode}")}
        assert told == {mode}
    assert "kl_eval" not in values
    spec, x = InputSpec((1, 8, 8), 4), columns.uniform_column(SPEC, 30, seed=0).x
    student = package.load(tmp_path / "out/runs/grey-s0/student.safetensors")
    teacher = columns.logits(Probe(network(), spec), x, spec)
    bank = load_file(tmp_path / "out/banks/noise-s0.safetensors")["x"]
    own = load_file(tmp_path / "out/banks/grey-s0.safetensors")["x"]
    scores = {
        mode: metrics.score(columns.logits(Probe(module, spec), x, spec, how), teacher)["kl"]  # type: ignore[arg-type]
        for mode, module, how in (
            ("kl", student, "eval"),
            ("kl_batch", student, "batch"),
            ("kl_recalibrated", recalibrated(student, bank, spec), "eval"),
            ("own", recalibrated(student, own, spec), "eval"),
        )
    }
    for metric in ("kl", "kl_batch", "kl_recalibrated"):
        assert values[metric] == pytest.approx(scores[metric], abs=1e-5)
    assert len({round(score or 0.0, 4) for score in scores.values()}) == 4  # else nothing is tested
    assert "agreement, BatchNorm recalibrated" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_eval_stands_beside_a_score_in_another_mode(tmp_path: Path, network: Network) -> None:
    words: dict[str, Any] = {"evaluate": Evaluation(columns=("uniform",), rows=8), "budget": Budget(steps=1, batch=4)}
    found = small(tmp_path / "a", network, [Uniform()], student="digits_cnn", student_score="batch", **words)
    assert {"agreement_eval", "kl_eval"} <= set(found.summary.metrics)
    plain = partial(models.build, "digits_cnn", SPEC, norm="group")
    found = small(tmp_path / "b", network, [Uniform()], student=plain, student_score="batch", **words)
    assert not [metric for metric in found.summary.metrics if metric.endswith("_eval")]


def test_draws_to_recalibrate_on_that_are_not_there(tmp_path: Path) -> None:
    """The named sampler is unsupported: what was to be recalibrated has no number, the rest stands."""
    evaluate = Evaluation(columns=("uniform",), rows=8, beside=("recalibrated",), recalibrate_on="inverted")
    samplers: dict[str, Any] = {"noise": Uniform(), "inverted": DeepInversion(steps=1)}
    plain = models.build("digits_cnn", SPEC, norm="group")
    words: dict[str, Any] = {"spec": SPEC, "seeds": [0], "budget": Budget(steps=1, batch=4), "evaluate": evaluate}
    lines = compare(plain, "digits_cnn", samplers, out=tmp_path / "a", **words).lines
    values = {line.metric: line.value for line in lines if (line.sampler, line.evaluation) == ("noise", "uniform")}
    assert values["agreement_recalibrated"] is None
    assert values["agreement"] is not None
    words["evaluate"] = dataclasses.replace(evaluate, beside=None)
    lines = compare(plain, "digits_cnn", samplers, out=tmp_path / "b", student_score="recalibrated", **words).lines
    head = next(line for line in lines if line.sampler == "noise" and line.metric == "agreement")
    assert (head.status, head.value) == ("unsupported", None)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"beside": ("evil",)}, "beside: unknown 'evil'; the nearest is 'eval'"),
        ({"recalibrate_on": "unifrom", "beside": ("recalibrated",)}, "recalibrate_on: unknown 'unifrom'; the nearest"),
        (
            {"recalibrate_on": "uniform"},
            "recalibrate_on: expected recalibrated as student_score or in beside, found eval",
        ),
    ],
)
def test_modes_that_cannot_be(tmp_path: Path, network: Network, evaluate: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(tmp_path, network, [Uniform()], evaluate=Evaluation(columns=("uniform",), **evaluate))
    assert not (tmp_path / "out").exists()


def test_excess_stands_exactly_where_a_control_ran(done: Path) -> None:
    lines = [line for line in results(done) if line["metric"] == "excess_agreement"]
    assert {line["seed"] for line in lines} == {0}
    assert {line["sampler"] for line in lines} == set(LABELS)
    assert {line["evaluation"] for line in lines} >= {"test", "uniform", "draws of real"}
    # those inputs were searched against the row's own student: any other looks better there
    assert "worst_case@8" not in {line["evaluation"] for line in lines}


def test_excess_is_over_the_control_student(done: Path, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    """Both students against the first teacher, by hand; the control's own teacher is not asked at all."""
    x = load(str(quadrants)).test.x.float() / 255.0
    run = done / "runs" / "real-s0"
    with torch.no_grad():
        teacher = package.load(teachers[0])(x).log_softmax(dim=1)
        student, control = (
            package.load(run / f"{name}.safetensors")(x).log_softmax(dim=1) for name in ("student", "control")
        )
    kl = [(teacher.exp() * (teacher - answers)).sum(dim=1).mean().item() for answers in (student, control)]
    same = [(teacher.argmax(dim=1) == answers.argmax(dim=1)).double().mean().item() for answers in (student, control)]
    assert abs(kl[0] - kl[1]) > 1e-4  # else nothing is tested
    found = results(done)
    assert value(found, "real", 0, "test", "excess_kl") == pytest.approx(kl[0] - kl[1], abs=1e-6)
    assert value(found, "real", 0, "test", "excess_agreement") == pytest.approx(same[0] - same[1])


def value(lines: Lines, sampler: str, seed: int, evaluation: str, metric: str) -> float:
    wanted = (sampler, seed, evaluation, metric)
    (found,) = (
        line["value"] for line in lines if (line["sampler"], line["seed"], line["evaluation"], line["metric"]) == wanted
    )
    assert isinstance(found, (int, float))
    return float(found)


def test_a_saved_student_comes_back_and_is_the_one_that_was_scored(
    done: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    data, teacher = load(str(quadrants)), Probe(package.load(teachers[0]), load(str(quadrants)).spec)
    for label in LABELS:
        student = package.load(done / "runs" / f"{label}-s1" / "student.safetensors")
        assert not student.training
        with torch.no_grad():
            mine = student(data.test.x.float() / 255.0)
        scores = metrics.score(mine, columns.logits(teacher, data.test.x, data.spec), data.test.y)
        for metric in ("agreement", "kl", "nll"):
            assert value(results(done), label, 1, "test", metric) == pytest.approx(scores[metric], abs=1e-5)
        bank = load_file(done / "banks" / f"{label}-s1.safetensors")["x"]
        assert (bank.shape, bank.dtype) == ((20, 1, 8, 8), torch.uint8)
        rows = np.load(done / "runs" / f"{label}-s1" / "rows.npz")
        assert rows["agreement|test"].mean() == pytest.approx(value(results(done), label, 1, "test", "agreement"))


def test_the_manifest_says_what_it_took(done: Path, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    manifest = json.loads((done / "manifest.json").read_text())
    spec = load(str(quadrants)).spec
    assert manifest["teacher"]["digest"] == Probe(package.load(teachers[0]), spec).digest
    assert manifest["control_teacher"]["digest"] == Probe(package.load(teachers[1]), spec).digest
    assert manifest["data"]["test_rows"] == 24
    assert manifest["data"]["train_rows"] == 80
    assert manifest["data"]["digest"] == load(str(quadrants)).digest
    assert manifest["resolution"] == pytest.approx(1 / 24)
    assert manifest["control"] is True
    assert manifest["seeds"] == [0, 1]
    assert manifest["control_seeds"] == [0]
    assert manifest["samplers"]["real"]["sources"] == [str(quadrants)]
    assert list(manifest["read"]["sources"]) == [str(quadrants)]
    assert manifest["samplers"]["inverted"]["data_free"] is True
    assert manifest["samplers"]["inverted"]["kind"] == "pooled"
    assert all(about["paper"] for about in manifest["samplers"].values())
    assert set(manifest) >= {"versions", "python", "threads", "cores", "device"}


def test_the_report_opens_without_a_network_and_escapes_labels(done: Path) -> None:
    page = (done / "report.html").read_text(encoding="utf-8")
    assert "a <b> & é" not in page
    assert "a &lt;b&gt; &amp; é" in page


def test_students_of_a_seed_start_from_the_same_weights(
    tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path], network: Network
) -> None:
    """Every sampler sees equal weights when it is set up; another seed has others."""
    seen: dict[str, list[str]] = {}

    class Watching(Uniform):
        def init(self, problem: Any, seed: int) -> Any:
            seen.setdefault(self.labelling, []).append(Probe(problem.student.module, problem.spec).digest)
            return super().init(problem, seed)

    compare(
        network(),
        lambda: network_of(4),
        {"one": Watching("eval"), "two": Watching("batch")},
        data=str(quadrants),
        seeds=[0, 1],
        budget=Budget(steps=1, batch=4),
        evaluate=Evaluation(columns=("uniform",), rows=8),
        out=tmp_path / "out",
    )
    assert seen["eval"] == seen["batch"]
    assert len(set(seen["eval"])) == 2
    del teachers


def network_of(width: int) -> nn.Module:
    from dfkd import models

    return models.build("digits_cnn", InputSpec((1, 8, 8), 4), width=width)


# -- continued, refused, the same --------------------------------------------------------------------------------------


def test_the_same_settings_continue(run: Command, tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    """A run that is missing is made again, and only that one; its numbers come out as before."""
    file, out = settings(tmp_path, quadrants, teachers, seeds=[0], control_teacher=None), tmp_path / "out"
    words = ("compare", file, "--out", out, "--workers", 1)
    said = run(*words)
    assert said.status == 0
    assert "inverted" in said.out
    before, lines = stamps(out), results(out)
    assert run(*words).status == 0
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    assert changed == {"results.jsonl", "report.html"}
    assert results(out) == lines
    gone = out / "runs" / "inverted-s0"
    for path in gone.iterdir():
        path.unlink()
    assert run(*words).status == 0
    changed = {name for name, stamp in stamps(out).items() if before.get(name) != stamp}
    expected = {str(path.relative_to(out)) for path in gone.iterdir()} | {"banks/inverted-s0.safetensors"}
    assert changed == {"results.jsonl", "report.html"} | expected
    assert numbers(results(out)) == numbers(lines)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("budget.steps=7", "differs in budget.steps;"),
        ("seeds=[0,1,2]", "differs in seeds;"),
        ("samplers=[uniform]", "differs in samplers;"),
        ("evaluate.rows=21", "differs in evaluate.rows;"),
        ("student.options.width=5", "differs in student.options.width;"),
        ("control_teacher=null", "differs in control_teacher;"),
        ("teacher.normalise=none", "differs in teacher.normalise;"),
    ],
)
def test_other_settings_are_refused_in_the_same_folder(done: Path, run: Command, word: str, part: str) -> None:
    before = stamps(done)
    said = run("compare", done.parent / "settings.yaml", word, "--out", done, "--workers", 1)
    assert said.status == 2
    assert said.err.splitlines()[-1].startswith(f"dfkd: out: {done} holds another run, which {part}")
    assert stamps(done) == before


def test_other_contents_of_what_a_sampler_reads_are_refused(
    run: Command, tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    table = tmp_path / "embeddings.npy"
    np.save(table, np.eye(4, 6, dtype=np.float32))
    recipe = {"embeddings": str(table), "batch": 4, "steps": 1, "warmup": 0, "rounds": 1, "noise": 8}
    changes = {"seeds": [0], "samplers": [{"nayer": recipe}], "evaluate": {"columns": ["uniform"], "rows": 5}}
    words = ("compare", settings(tmp_path, quadrants, teachers, **changes), "--out", tmp_path / "out", "--workers", 1)
    assert run(*words).status == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["samplers"]["nayer"]["sources"] == [str(table)]
    assert manifest["samplers"]["nayer"]["data_free"] is True
    np.save(table, 2 * np.eye(4, 6, dtype=np.float32))
    said = run(*words)
    assert said.status == 2
    assert said.err.endswith("was begun with another data of the same name; name another folder\n")


def test_another_teacher_under_the_same_name_is_refused(
    run: Command, tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    ours = (tmp_path / "t.safetensors", tmp_path / "c.safetensors")
    for source, target in zip(teachers, ours, strict=True):
        target.write_bytes(source.read_bytes())
    changes = {"seeds": [0], "samplers": ["uniform"], "evaluate": {"columns": ["uniform"], "rows": 5}}
    words = ("compare", settings(tmp_path, quadrants, ours, **changes), "--out", tmp_path / "out", "--workers", 1)
    assert run(*words).status == 0
    before = stamps(tmp_path / "out")
    for place, name in ((0, "teacher"), (1, "control teacher")):
        ours[place].write_bytes(teachers[1 - place].read_bytes())
        said = run(*words)
        assert said.status == 2
        assert said.err.endswith(f"was begun with another {name} of the same name; name another folder\n")
        ours[place].write_bytes(teachers[place].read_bytes())
    assert stamps(tmp_path / "out") == before
    assert run(*words).status == 0


def test_two_processes_that_are_killed_and_one_that_continues_give_the_numbers_of_one(
    done: Path, tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    """A parent that is killed takes its workers with it; what they had finished stands, the rest comes out the same."""
    from dfkd import commands

    file, out = settings(tmp_path, quadrants, teachers), tmp_path / "out"
    command = [sys.executable, "-m", "dfkd", "compare", str(file), "--out", str(out), "--workers", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while len(list(out.glob("runs/*/*.json"))) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    finished = stamps(out)
    records = [name for name in finished if name.endswith(("student.json", "control.json"))]
    assert 5 <= len(records) < 9
    assert not (out / "results.jsonl").exists()
    patience = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < patience:
        time.sleep(0.05)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left  # nobody goes on writing for a parent that is gone
    commands.compare([str(file)], out, 1, False)
    assert all(stamps(out)[name] == finished[name] for name in records)
    assert numbers(results(out)) == numbers(results(done))


def children(pid: int) -> list[int]:
    """Processes that `pid` started; none where there is no /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_draws_are_set_beside_the_data(done: Path, quadrants: Path, teachers: tuple[Path, Path]) -> None:
    """For every sampler and seed; the same as from the bank that was kept, and said with how many rows of what."""
    data, teacher = load(str(quadrants)), Probe(package.load(teachers[0]), load(str(quadrants)).spec)
    reference = Reference.of(teacher, data.spec, data.train.x, data.test.x)
    lines = {
        (line["sampler"], line["seed"], line["metric"]): line["value"]
        for line in results(done)
        if line["evaluation"] == "own_draws"
    }
    for label in LABELS:
        for seed in (0, 1):
            bank = load_file(done / "banks" / f"{label}-s{seed}.safetensors")["x"]
            expected = reference.score(bank, some_rows, 1000).values
            found = {name: lines[label, seed, name] for name in QUALITY}
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
            about = json.loads((done / "runs" / f"{label}-s{seed}" / "quality.json").read_text())
            assert about == {"n": 20, "training_rows": 80, "k": 5, "reasons": {}}
    assert lines["real", 0, "copies_pixels"] == 1.0
    assert lines["inverted", 0, "copies_pixels"] == 0.0
    assert "How the draws lie beside the data" in (done / "report.html").read_text(encoding="utf-8")


def test_draws_are_not_set_beside_data_where_that_is_not_wanted(
    tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    data = load(str(quadrants))
    common: dict[str, Any] = {"budget": Budget(steps=1, batch=8), "seeds": [0], "spec": data.spec}
    for given, rows in ((data, 0), (None, 1000)):
        found = compare(
            package.load(teachers[0]),
            package.load(teachers[1]),
            [Uniform()],
            data=given,
            evaluate=Evaluation(columns=("uniform",), rows=8, quality_rows=rows),
            out=tmp_path / str(rows),
            **common,
        )
        assert not {line.metric for line in found.lines} & set(QUALITY)
    with pytest.raises(ValueError, match="quality_rows: expected an integer >= 0, found -1"):
        Evaluation(quality_rows=-1)


def test_what_the_teacher_is_asked_to_judge_is_counted(done: Path) -> None:
    """A bank of 20 drawn, diagnosed and set beside 24 + 80 rows of data, columns that all share, and a search."""
    found = {(line["sampler"], line["seed"]): line["evaluate_forward"] for line in results(done)}
    assert all(line["evaluate_forward"] == found[line["sampler"], line["seed"]] for line in results(done))
    scoring = 24 + 24 + 20 + 3 * 20 + 24 * (1 + 2 + 1) + 24
    scoring += 20 + 24 + 80
    assert found["real", 0] == found["real", 1] == scoring + 20 + 2 * 20
    assert found["inverted", 0] >= scoring + 20 + 2 * 20


def test_rows_that_stand_for_all_are_of_every_class(tmp_path: Path, network: Network) -> None:
    """A test set sorted by class: its first rows would be of one class alone."""
    y = torch.arange(4).repeat_interleave(30)
    x = y[:, None, None, None].mul(60).expand(-1, 1, 8, 8).to(torch.uint8)
    data = Dataset("sorted", ImageSet(x, y), ImageSet(x, y), SPEC, "")
    settings = Settings(network(), factory, {"uniform": Uniform()}, SPEC, data, evaluate=Evaluation(worst_case_rows=20))
    (near,) = scoring._near(settings, tmp_path, 0)
    assert near.y is not None
    assert len(near) == 20
    assert set(near.y.tolist()) == {0, 1, 2, 3}
    assert torch.equal(near.x[:, 0, 0, 0].long(), 60 * near.y)
    again, other = (scoring._near(settings, tmp_path, seed)[0] for seed in (0, 1))
    assert torch.equal(near.x, again.x)
    assert torch.equal(near.x, other.x)
    everything = dataclasses.replace(settings, evaluate=Evaluation(worst_case_rows=120))
    assert torch.equal(scoring._near(everything, tmp_path, 0)[0].x, x)


# -- runs without a number ---------------------------------------------------------------------------------------------


class Stopping(Uniform):
    """The process is asked to end while it draws, as a scheduler does."""

    def draw(self, *arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().draw(*arguments, **options)


def test_a_run_that_is_stopped_lets_no_other_begin(tmp_path: Path, network: Network) -> None:
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, network, {"first": Stopping(), "second": Uniform()}, evaluate=Evaluation(columns=("uniform",)))
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["first-s0"]
    assert not list((tmp_path / "out" / "runs").glob("*/student.json"))


@pytest.mark.parametrize("lost", ["cut short", "cut short, told so", "missing"])
@pytest.mark.parametrize("name", ["student", "control"])
def test_a_run_whose_student_is_lost_is_done_again(tmp_path: Path, network: Network, name: str, lost: str) -> None:
    samplers, evaluate = {"first": Uniform(), "second": Gaussian()}, Evaluation(columns=("uniform",), rows=10)
    changed = {"evaluate": evaluate, "control_teacher": network(1)}
    found, runs = small(tmp_path, network, samplers, **changed), tmp_path / "out" / "runs"
    file, other, scores = runs / "first-s0" / f"{name}.safetensors", runs / "second-s0", runs / "first-s0/scores.jsonl"
    whole, others, scored = file.read_bytes(), stamps(other), stamps(runs)["first-s0/scores.jsonl"]
    said: Any = pytest.warns(UserWarning, match=rf"{name}.safetensors is missing or cut short; it is trained again")
    if lost == "missing":
        file.unlink()
        scores.unlink()
    else:
        file.write_bytes(whole[:200])
    if lost == "cut short, told so":  # a record that cannot be read is to be deleted, its error says
        file.with_suffix(".json").unlink()
        said = nullcontext()
    with said:
        again = small(tmp_path, network, samplers, **changed)
    assert file.read_bytes() == whole
    assert stamps(runs)["first-s0/scores.jsonl"] > scored
    assert (stamps(other), [a.value for a in again.lines]) == (others, [line.value for line in found.lines])
    before = stamps(runs)
    small(tmp_path, network, samplers, **changed)
    assert stamps(runs) == before


def test_students_that_were_scored_may_be_taken_away(tmp_path: Path, network: Network) -> None:
    samplers, evaluate = {"first": Uniform(), "second": Gaussian()}, Evaluation(columns=("uniform",), rows=10)
    found, runs = small(tmp_path, network, samplers, evaluate=evaluate), tmp_path / "out" / "runs"
    (runs / "first-s0" / "student.safetensors").unlink()
    before = stamps(runs)
    assert small(tmp_path, network, samplers, evaluate=evaluate).lines == found.lines
    assert stamps(runs) == before


def test_a_student_that_cannot_be_looked_at_is_not_lost(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    samplers, evaluate = {"uniform": Uniform()}, Evaluation(columns=("uniform",), rows=10)
    small(tmp_path, network, samplers, evaluate=evaluate)
    before = stamps(tmp_path / "out" / "runs")
    monkeypatch.setattr(cells, "safe_open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        small(tmp_path, network, samplers, evaluate=evaluate)
    assert stamps(tmp_path / "out" / "runs") == before


def test_two_comparisons_do_not_write_in_one_folder(
    tmp_path: Path, network: Network, other_process: Callable[..., Any]
) -> None:
    samplers, evaluate, out = {"uniform": Uniform()}, Evaluation(columns=("uniform",), rows=10), tmp_path / "out"
    wanted = rf"^out: another process writes in {out}; wait for it or name another folder$"
    out.mkdir()
    with other_process(out / ".lock"), pytest.raises(ValueError, match=wanted):
        small(tmp_path, network, samplers, evaluate=evaluate)
    assert [path.name for path in out.iterdir()] == [".lock"]  # of the process that was killed
    found = small(tmp_path, network, samplers, evaluate=evaluate)
    before = stamps(out)
    with other_process(out / ".lock"), pytest.raises(ValueError, match=wanted):
        small(tmp_path, network, samplers, evaluate=evaluate)
    (out / ".lock").unlink()  # of another that was killed; the run before has taken its own away
    assert stamps(out) == before
    assert not list(out.rglob(".*"))
    assert found.summary.failed == {"uniform": {}}


def test_a_run_waits_for_a_process_that_outlived_its_comparison(
    tmp_path: Path, network: Network, other_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    samplers, evaluate = {"uniform": Uniform()}, Evaluation(columns=("uniform",), rows=10)
    run = tmp_path / "out" / "runs" / "uniform-s0"
    with monkeypatch.context() as patched:
        patched.setattr(Uniform, "draw", stopped)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path, network, samplers, evaluate=evaluate)
    left, train, there = tmp_path / "left", cells._train, list[bool]()

    def noticed(*words: Any) -> Any:
        there.append(left.exists())
        return train(*words)

    monkeypatch.setattr(cells, "_train", noticed)
    with other_process(run / ".student.lock", seconds=5.0, left=left):
        small(tmp_path, network, samplers, evaluate=evaluate)
    assert there == [True]
    assert not list(run.glob(".*"))


def test_what_that_process_has_done_is_not_done_again(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to its end while the run is waited for."""
    samplers, evaluate = {"uniform": Uniform()}, Evaluation(columns=("uniform",), rows=10)
    found = small(tmp_path, network, samplers, evaluate=evaluate)
    record = tmp_path / "out" / "runs" / "uniform-s0" / "student.json"
    written = record.read_bytes()
    record.unlink()

    @contextmanager
    def waited(*_: Any, **__: Any) -> Iterator[None]:
        record.write_bytes(written)
        yield

    monkeypatch.setattr(cells, "alone_with", waited)
    monkeypatch.setattr(cells, "_train", lambda *_: 1 / 0)
    assert small(tmp_path, network, samplers, evaluate=evaluate).lines == found.lines


class Blind(nn.Module):
    """A network whose input gets no gradient, as an exported one, and whose answers can be made to overflow."""

    def __init__(self, below: float = math.inf, answer: float = math.nan) -> None:
        super().__init__()
        self.inner, self.below, self.answer = network_of(4), below, answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(x.detach())
        rough = (x.std(dim=(1, 2, 3)) > self.below)[:, None]
        return logits.masked_fill(rough, self.answer)


def test_a_draw_that_is_refused_loses_only_its_own_row(tmp_path: Path, network: Network) -> None:
    """That a mixture has two labelling modes shows when a pool asks for its first draw."""
    samplers = {"ok": Uniform(), "a": Pooled(Mixture((Uniform(), Gaussian(labelling="eval"))))}
    found = small(tmp_path, network, samplers, evaluate=Evaluation(columns=("uniform",), rows=10))
    (line,) = (line for line in found.lines if line.sampler == "a")
    assert (line.status, line.value) == ("unsupported", None)
    assert {line.status for line in found.lines if line.sampler == "ok"} == {"ok"}


def statuses(found: Comparison) -> dict[str, set[str]]:
    by_column: dict[str, set[str]] = {}
    for line in found.lines:
        by_column.setdefault(line.evaluation, set()).add(line.status)
    return by_column


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_without_input_gradients_only_the_worst_cases_are_missing(tmp_path: Path, network: Network, who: str) -> None:
    evaluate = Evaluation(rows=10, worst_case_around="uniform", epsilons=(4.0,))
    settings: dict[str, Any] = {"spec": SPEC, "seeds": [0], "budget": Budget(steps=1, batch=8), "evaluate": evaluate}
    teacher, student = (Blind(), factory) if who == "teacher" else (network(), Blind)
    found = compare(teacher, student, [Uniform()], out=tmp_path / "out", **settings)
    rest = {name: {"ok"} for name in ("uniform", "draws of uniform", "own_draws")}
    assert statuses(found) == rest | {"worst_case@4": {"unsupported"}}
    assert found.summary.failed == {"uniform": {}}
    assert found.summary.cell("uniform", "worst_case@4", "agreement").status == "unsupported"
    assert found.summary.cell("uniform", "uniform", "agreement").status == "ok"
    found.print()


def test_answers_that_are_not_finite_are_a_column_without_a_number(tmp_path: Path, network: Network) -> None:
    flat = Evaluation(columns=("uniform", "draws"), rows=10)
    samplers = [Gaussian(std=0.001, labelling="eval")]
    found = small(tmp_path, network, samplers, student=lambda: Blind(0.1), evaluate=flat)
    assert statuses(found) == {"uniform": {"diverged"}, "draws of gaussian": {"ok"}, "own_draws": {"ok"}}
    with pytest.raises(ValueError, match=r"^teacher: expected finite logits on the column 'uniform', found NaN or inf"):
        compare(Blind(0.1), factory, samplers, spec=SPEC, seeds=[0], budget=Budget(steps=1, batch=4),
                evaluate=flat, out=tmp_path / "other")  # fmt: skip


def test_unsupported_and_diverged_runs_are_lines(
    run: Command, tmp_path: Path, quadrants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_net.py").write_text(
        "from torch import nn\ndef plain(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).state_dict(), "plain.pt")
    changes = {
        "teacher": {"model": "plain_net:plain", "weights": "plain.pt", "data": str(quadrants)},
        "student": "plain_net:plain",
        "control_teacher": None,
        "samplers": ["uniform", "deep_inversion"],
        "seeds": [0],
        "evaluate": {"columns": ["test", "draws"], "rows": 5},
    }
    file = settings(tmp_path, quadrants, (Path("unused"), Path("unused")), **changes)
    assert run("compare", file, "--out", "out", "--workers", 1).status == 0
    (line,) = (line for line in results(tmp_path / "out") if line["sampler"] == "deep_inversion")
    assert (line["status"], line["value"], line["steps"]) == ("unsupported", None, 0)
    assert (line["evaluation"], line["metric"]) == ("test", "agreement")
    reason = json.loads((tmp_path / "out/runs/deep_inversion-s0/student.json").read_text())["reason"]
    assert "deep_inversion: needs a teacher with batchnorm" in reason
    assert value(results(tmp_path / "out"), "uniform", 0, "test", "agreement") >= 0.0
    words = ("optimiser.learning_rate=1e30", "optimiser.schedule=constant", "budget.steps=60", "samplers=[uniform]")
    assert run("compare", file, *words, "--out", "wild", "--workers", 1).status == 0
    (line,) = results(tmp_path / "wild")
    assert (line["status"], line["value"], line["sampler"]) == ("diverged", None, "uniform")
    assert line["steps"] > 0
    again = run("report", "wild")
    assert again.status == 0
    assert "diverged" in again.out


def test_a_generator_that_diverges_is_a_line_and_the_others_go_on(tmp_path: Path, network: Network) -> None:
    """Be it made anew for each round, or kept; its start, of which it has finite images, is not taken for a result."""
    rate: dict[str, Any] = {"learning_rate": 1e30}
    samplers = {
        "generative": Generative(batch=8, **rate),
        "cmi": CMI(steps=2, batch=8, negatives=8, **rate),
        "nayer": NAYER(steps=2, batch=8, **rate),
        "fast_dfkd": FastDFKD(batch=8, generator_rate=1e30),
        "spaceshipnet": SpaceshipNet(steps=2, batch=8, **rate),
        "noise": Uniform(),
    }
    lines = small(tmp_path, network, samplers, evaluate=Evaluation(columns=("uniform",), rows=8)).lines
    found = {name: {line.status for line in lines if line.sampler == name} for name in samplers}
    assert found == {name: {"ok" if name == "noise" else "diverged"} for name in samplers}


def test_a_sampler_without_labels_is_a_line_where_labels_are_learnt(
    tmp_path: Path, network: Network, quadrants: Path
) -> None:
    objective = combine({"labels": (1.0, LabelCrossEntropy())})
    samplers = {"real": Real(data=str(quadrants)), "noise": Uniform()}
    lines = small(
        tmp_path, network, samplers, objective=objective, evaluate=Evaluation(columns=("uniform",), rows=8)
    ).lines
    assert {line.status for line in lines if line.sampler == "real"} == {"ok"}
    (line,) = (line for line in lines if line.sampler == "noise")
    assert (line.status, line.value) == ("unsupported", None)
    reason = json.loads((tmp_path / "out" / "runs" / "noise-s0" / "student.json").read_text())["reason"]
    assert reason == "label_ce: needs ground-truth labels, found a batch without y"


# -- from Python -------------------------------------------------------------------------------------------------------


SPEC = InputSpec((1, 8, 8), 4)


def small(tmp_path: Path, network: Network, samplers: Any, **changed: Any) -> Comparison:
    wanted: Mapping[str, Any] = {
        "student": lambda: network_of(4),
        "spec": SPEC,
        "seeds": [0],
        "budget": Budget(steps=2, batch=8),
        "evaluate": Evaluation(rows=10, worst_case_around="uniform", worst_case_steps=1, worst_case_restarts=1),
        "out": tmp_path / "out",
    } | changed
    wanted = dict(wanted)
    return compare(network(), wanted.pop("student"), samplers, **wanted)


def test_without_data_nothing_is_called_test(tmp_path: Path, network: Network) -> None:
    found = small(tmp_path, network, [Uniform(), DeepInversion(steps=1)])
    assert {line.evaluation for line in found.lines} == {
        "uniform",
        "draws of uniform",
        "draws of deep_inversion",
        "own_draws",
        "worst_case@2",
        "worst_case@8",
    }
    assert "data" not in json.loads((found.folder / "manifest.json").read_text())
    table_metrics = {line.metric for line in found.lines}
    assert not table_metrics & {"accuracy", "nll", "ece", "excess_agreement"}


def test_a_failed_run_without_data_is_not_called_test_either(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    found = compare(
        plain,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
        [DeepInversion()],
        spec=SPEC,
        seeds=[0],
        out=tmp_path / "out",
    )
    (line,) = found.lines
    assert (line.evaluation, line.status, line.value) == ("draws of deep_inversion", "unsupported", None)


def test_samplers_by_label_and_as_a_list(tmp_path: Path, network: Network) -> None:
    parts = [Uniform(), Pooled(Uniform("eval"), round=8)]
    listed = small(tmp_path / "a", network, parts)
    named = small(tmp_path / "b", network, {"uniform": parts[0], "bank": parts[1]})
    assert {line.sampler for line in listed.lines} == {"uniform", "pooled-uniform"}
    assert {line.sampler for line in named.lines} == {"uniform", "bank"}

    def agreement(found: Comparison, label: str) -> float | None:
        return found.summary.cell(label, "uniform", "kl").mean

    assert agreement(listed, "pooled-uniform") == agreement(named, "bank")


@dataclasses.dataclass(frozen=True)
class Recipe(Uniform):
    """Noise whose authors trained the student in a way of their own."""

    preset: ClassVar[Preset] = Preset({"mse": (0.5, LogitMSE())}, {"learning_rate": 0.02, "schedule": "constant"}, 6, 9)


def test_a_preset_trains_the_student_as_its_recipe_says_and_others_as_all(tmp_path: Path, network: Network) -> None:
    samplers = {"uniform": Uniform(), "recipe": Recipe(), "inside": Mixup(Recipe())}
    by_preset = small(tmp_path / "a", network, samplers, preset=True)
    by_hand = small(
        tmp_path / "b",
        network,
        samplers,
        objective=combine({"mse": (0.5, LogitMSE())}),
        optimiser=Optimiser(learning_rate=0.02, schedule="constant"),
        budget=Budget(steps=by_preset.lines[0].steps, batch=6),
    )
    shared = small(tmp_path / "c", network, samplers)

    def kl(found: Comparison, label: str) -> float | None:
        return found.summary.cell(label, "uniform", "kl").mean

    for label in ("recipe", "inside"):
        assert kl(by_preset, label) == kl(by_hand, label) != kl(shared, label)
    assert kl(by_preset, "uniform") == kl(shared, "uniform") != kl(by_hand, "uniform")
    manifest = json.loads((by_preset.folder / "manifest.json").read_text())["samplers"]
    assert "LogitMSE" in manifest["recipe"]["preset"]
    assert manifest["inside"]["preset"].endswith("batch 6")
    assert "preset" not in manifest["uniform"]


def test_the_caller_keeps_his_models_as_they_were(tmp_path: Path, network: Network) -> None:
    teacher, warm = network(0).train(), network(1)
    before = copy.deepcopy((teacher.state_dict(), warm.state_dict()))
    compare(teacher, warm, [Uniform()], spec=SPEC, seeds=[0], budget=Budget(steps=2, batch=8), out=tmp_path / "out",
            evaluate=Evaluation(columns=("uniform",), rows=4))  # fmt: skip
    assert teacher.training
    for old, module in zip(before, (teacher, warm), strict=True):
        assert all(torch.equal(old[key], tensor) for key, tensor in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_table_a_frame_and_a_report(
    tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = small(tmp_path, network, [Uniform()])
    found.print()
    assert "uniform" in capsys.readouterr().out
    assert found.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!")
    pandas = ModuleType("pandas")
    pandas.DataFrame = list  # type: ignore[attr-defined]  # in the place of a package that need not be there
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows = found.to_frame()
    assert len(rows) == len(found.lines)
    assert rows[0]["sampler"] == "uniform"
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame: needs pandas"):
        found.to_frame()


def test_a_frame_of_pandas(tmp_path: Path, network: Network) -> None:
    pytest.importorskip("pandas")
    found = small(tmp_path, network, [Uniform()])
    frame = found.to_frame()
    assert len(frame) == len(found.lines)
    assert set(frame.columns) >= FIELDS


def test_without_a_folder_it_is_kept_as_long_as_the_result(network: Network) -> None:
    found = compare(network(), lambda: network_of(4), [Uniform()], spec=SPEC, seeds=[0],
                    budget=Budget(steps=1, batch=4), evaluate=Evaluation(columns=("uniform",), rows=4))  # fmt: skip
    folder = found.folder
    assert (folder / "report.html").exists()
    del found
    assert not folder.exists()


def factory() -> nn.Module:
    return network_of(5)


def other_factory() -> nn.Module:
    return network_of(6)


def test_another_student_of_the_same_kind_is_refused(tmp_path: Path, network: Network) -> None:
    quick = {"budget": Budget(steps=1, batch=4), "evaluate": Evaluation(columns=("uniform",), rows=4)}
    small(tmp_path, network, [Uniform()], student=factory, **quick)
    with pytest.raises(ValueError, match="was begun with another student of the same name"):
        small(tmp_path, network, [Uniform()], student=other_factory, **quick)
    with pytest.raises(ValueError, match=r"holds another run, which differs in optimiser; name another folder"):
        small(tmp_path, network, [Uniform()], student=factory, optimiser=Optimiser(learning_rate=1.0), **quick)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec": None}, "compare: expected data or spec, found neither"),
        ({"spec": InputSpec((1, 8, 8), 5)}, r"teacher: expected logits of shape \(n, 5\)"),
        ({"student": lambda: 3}, "student: expected the factory to return a torch.nn.Module, found int"),
        ({"student": lambda: nn.Linear(3, 3)}, "student: cannot be asked images of shape"),
        ({"student": "digit_cnn"}, "model: unknown 'digit_cnn'; the nearest is 'digits_cnn'"),
        ({"control_teacher": nn.Linear(3, 3)}, "control teacher: cannot be asked images of shape"),
        ({"samplers": ["uniform"]}, r"samplers: expected samplers, such as Uniform\(\), found 'uniform'"),
        ({"samplers": [Uniform]}, "samplers: expected samplers"),
        ({"samplers": []}, "samplers: expected at least one, found none"),
        ({"samplers": [Uniform(), Uniform("eval")]}, "samplers: two of them have the same label"),
        ({"samplers": [Real("nowhere.npz")]}, "data: no such file or folder: 'nowhere.npz'"),
        ({"samplers": [Mixture((Uniform(), Real("digits")))]}, r"data: expected images .* of 4 classes"),
        ({"samplers": {101 * "a": Uniform()}}, r"samplers: 'a+\.\.\.' is longer than 100 bytes.*give a `label`"),
        ({"seeds": []}, "seeds: expected different integers"),
        ({"precision": "float16"}, "precision: expected one of float32, tf32, bfloat16"),
        ({"student_score": "train"}, "student_score: expected one of eval, batch, recalibrated"),
        ({"control_seeds": 0}, "control_seeds: expected an integer >= 1"),
        ({"device": "tpu"}, "device: expected cpu, cuda or cuda:N, found 'tpu'"),
        ({"workers": 2, "seeds": [0, 1]}, "workers: several processes need settings that can be pickled"),
    ],
)
def test_what_does_not_fit_is_found_before_any_work(
    tmp_path: Path, network: Network, changed: dict[str, Any], message: str
) -> None:
    words = {"evaluate": Evaluation(columns=("uniform",), rows=4)} | changed
    with pytest.raises(ValueError, match=message):
        small(tmp_path, network, words.pop("samplers", [Uniform()]), **words)
    assert not (tmp_path / "out").exists()


def test_data_of_another_shape_is_refused(tmp_path: Path, network: Network, quadrants: Path) -> None:
    with pytest.raises(
        ValueError, match=r"spec: expected images \(1, 8, 8\) of 4 classes, as in .*found \(1, 8, 8\) o"
    ):
        small(tmp_path, network, [Uniform()], data=str(quadrants), spec=InputSpec((1, 8, 8), 5))


def test_a_warm_start_begins_from_its_weights(
    run: Command, tmp_path: Path, quadrants: Path, teachers: tuple[Path, Path]
) -> None:
    """The teacher itself as the student, hardly trained: it still agrees with it, and is given back by name."""
    changes = {
        "student": {"weights": str(teachers[0])},
        "control_teacher": None,
        "samplers": [{"uniform": {"labelling": "eval"}}],
        "seeds": [0],
        "budget": {"steps": 1, "batch": 8},
        "optimiser": {"learning_rate": "1e-9"},
        "student_train": "fixed",
        "evaluate": {"columns": ["test"]},
    }
    file = settings(tmp_path, quadrants, teachers, **changes)
    assert run("compare", file, "--out", tmp_path / "out", "--workers", 1).status == 0
    assert value(results(tmp_path / "out"), "uniform", 0, "test", "agreement") == 1.0
    student = package.load(tmp_path / "out/runs/uniform-s0/student.safetensors")
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student(x), package.load(teachers[0])(x))
