"""The words under the title: a lead is claimed where there is one and nowhere else."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd.report import verdict as module
from dfkd.report import write_report
from dfkd.report.run import load_run
from dfkd.report.verdict import verdict
from dfkd.report.words import listed

Build = Callable[..., Path]
FREE = ("deep_inversion", "uniform", "generative")


def words(folder: Path) -> str:
    return " ".join(str(sentence) for sentence in verdict(load_run(folder)))


def test_a_clear_lead_is_claimed(build: Build) -> None:
    scores = {"deep_inversion": 0.97, "uniform": 0.5, "generative": 0.7}
    said = words(build(samplers=("real", *FREE), scores=scores, diverged=()))
    assert "Without data, <strong>deep_inversion</strong> does best" in said
    assert "<strong>97.0\u00a0±\u00a00.4\u00a0%</strong> of the 360 test rows" in said
    assert "The lead over all 2 other data-free samplers holds" in said
    assert "more than the larger spread" in said
    assert "<strong>real</strong>, reaches 99.1" in said


def test_a_lead_inside_the_spread_is_not_claimed(build: Build) -> None:
    scores = {"deep_inversion": 0.91, "generative": 0.905, "uniform": 0.5}
    said = words(build(samplers=FREE, scores=scores, jitter=0.03, against=("generative",), diverged=()))
    assert "No lead over generative is supported" in said
    assert "It is ahead beyond chance of uniform only" in said
    assert "no more than the larger spread" in said
    assert "holds" not in said
    (least,) = re.findall(r"A lead over generative would have to be ([\d.]+) points to be found in four of five", said)
    assert 0.5 < float(least) < 100.0  # the lead there is, half a point, was not found


def test_two_seeds_of_many_samplers_can_find_nothing(build: Build) -> None:
    scores = {"deep_inversion": 0.91, "generative": 0.905, "uniform": 0.5}
    said = words(build(samplers=FREE, scores=scores, jitter=0.03, against=("generative",), diverged=(), seeds=(0, 1)))
    assert "no lead over generative, however large, would be found in four of five" in said


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": (0,)}, "with one seed the spread is unknown and no lead is claimed"),
        ({"samplers": ("real", "uniform")}, "No other data-free sampler has a score"),
        ({"samplers": ("real", "mixup")}, "No data-free sampler has a score"),
        ({"samplers": ("no batchnorm",)}, "nothing can be said about fidelity"),
    ],
)
def test_no_lead_is_claimed_without_grounds(build: Build, changes: dict[str, object], expected: str) -> None:
    said = words(build(**{"samplers": ("real", *FREE), **changes}))
    assert expected in said
    assert "holds" not in said


def test_without_a_test_set_it_says_so(build: Build) -> None:
    said = words(build(samplers=("real", *FREE), columns=("uniform",)))
    assert "samplers are ranked on <em>uniform</em>, not a test score" in said
    assert "test rows" not in said


@pytest.mark.parametrize(
    ("column", "same"),
    [
        ("test", True),
        ("uniform", True),
        ("noise@3", True),
        ("draws of a@b", False),
        ("draws of noise@3", False),
        ("worst_case@2", False),
        ("draws of real", False),
    ],
)
def test_which_columns_hold_the_same_rows_for_all(column: str, same: bool) -> None:
    assert module._same_rows(column) is same


@pytest.mark.parametrize(
    "settings", ["Mixup(base=Real(data='digits', split='test'))", {"split": "test"}, "split: test"]
)
def test_a_sampler_that_saw_the_test_rows_is_no_reference(build: Build, settings: object) -> None:
    folder = build(samplers=("real", "mixup", "uniform"))
    assert "<strong>real</strong>, reaches" in words(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["samplers"]["real"]["settings"] = settings
    manifest["samplers"]["mixup"]["settings"] = "Mixup(base=Real(data='digits', split='train'))"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said = words(folder)
    assert "The reference that reads data, <strong>mixup</strong>, reaches" in said
    assert "No reference, as it learned from the test rows: <strong>real</strong>." in said


def test_a_runner_up_without_all_seeds_is_not_passed_over(build: Build) -> None:
    scores = {"deep_inversion": 0.97, "generative": 0.9, "uniform": 0.5}
    said = words(build(samplers=FREE, scores=scores, diverged=(("generative", 2),)))
    assert "<strong>generative</strong>, is" in said
    assert "it lacks some of the seeds, so no lead over it is claimed" in said
    assert "generative diverged on 1 of 3 seeds" in said


def test_students_trained_in_their_own_way_are_named(build: Build) -> None:
    folder = build(samplers=FREE)
    assert "Trained as" not in words(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["samplers"]["generative"]["preset"] = "1 KL(temperature=1.0), batch 256"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "more than the inputs differs between rows: <strong>generative</strong>." in words(folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "student trained with 1 KL(temperature=1.0), batch 256" in page


def test_names_are_escaped(folder: Path) -> None:
    run = load_run(folder)
    assert "<script>" not in words(folder)
    assert "<script>alert(1)</script>" in run.order


def test_the_reason_of_an_unsupported_sampler_is_said_as_text(folder: Path) -> None:
    place = folder / "runs" / "no batchnorm-s0"
    place.mkdir(parents=True)
    (place / "student.json").write_text('{"status": "unsupported", "reason": "it: needs <b>BatchNorm"}')
    assert "no batchnorm is unsupported here (it: needs &lt;b&gt;BatchNorm)" in words(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [("", ""), ("a", "a"), ("ab", "a and b"), ("abcde", "a, b, c, d and e"), ("abcdef", "a, b, c and 3 others")],
)
def test_few_names_are_listed_and_many_counted(names: str, said: str) -> None:
    assert listed(list(names)) == said
