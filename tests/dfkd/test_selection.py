"""Which student is kept where no data says so: the preference by hand, and `dfkd distill` with stop and samplers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dfkd import load
from dfkd.models import read_card
from dfkd.results import Line, Status
from dfkd.selection import preference

Command = Callable[..., Any]
INVERTED = "{pooled: {base: {deep_inversion: {steps: 2, batch: 16}}, round: 16}}"
QUICK = ["budget.steps=8", "budget.batch=8"]


def lines(sampler: str, agreement: dict[str, float], own: dict[str, float], status: Status = "ok") -> list[Line]:
    def line(evaluation: str, metric: str, value: float | None) -> Line:
        return Line(sampler, True, 0, evaluation, metric, value, 1, 1, 1.0, status=status)

    if status != "ok":
        return [line("test", "agreement", None)]
    scored = [line(f"draws of {bank}", "agreement", value) for bank, value in agreement.items()]
    return [
        *scored,
        line("test", "agreement", 0.0),
        *(line("own_draws", metric, value) for metric, value in own.items()),
    ]


def test_preference_by_hand() -> None:
    """a is before b in all criteria and b before c: weights 1, 1/2 and 0. What was not trained counts nowhere."""

    def own(rank: float) -> dict[str, float]:
        return {"histogram_entropy": rank, "batchnorm_gauss": -rank, "feature_rank": rank, "mean_confidence": -rank}

    found = preference(
        [
            *lines("c", {"a": 0.5, "b": 0.5, "c": 1.0, "d": 1.0}, own(1.0)),
            *lines("b", {"a": 0.8, "b": 0.9, "c": 0.7, "d": 1.0}, own(2.0)),
            *lines("a", {"a": 0.9, "b": 0.4, "c": 0.1, "d": 1.0}, own(3.0)),
            *lines("d", {}, {}, status="diverged"),
        ]
    )
    assert list(found) == ["b", "a", "c"]
    assert found == pytest.approx({"a": (0.9 + 0.2) / 1.5, "b": (0.8 + 0.45) / 1.5, "c": (0.5 + 0.25) / 1.5})


def test_preference_of_one_and_of_none() -> None:
    assert preference(lines("a", {"a": 0.7}, {"histogram_entropy": 1.0})) == pytest.approx({"a": 0.7})
    with pytest.raises(ValueError, match="samplers: expected a student that was trained to the end"):
        preference(lines("a", {}, {}, status="diverged"))


def test_distil_keeps_the_preferred_of_several(
    run: Command, tmp_path: Path, teachers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["distill", f"teacher={teachers[0]}", f"samplers=[uniform, {INVERTED}]", *QUICK, "--out", "out"]
    said = run(*words)
    assert said.status == 0, said.err
    card = json.loads(Path("out/card.json").read_text())
    preferred = card["preference_not_a_test_score"]
    assert set(preferred) == {"uniform", "pooled-deep_inversion"}
    assert card["chosen"] == max(preferred, key=preferred.__getitem__)
    assert said.out.startswith(f"chosen: {card['chosen']}, {card['teacher_images']} teacher images for all\n")
    assert "(not a test score)" in said.out
    assert read_card(Path("out/student.safetensors")) == card
    kept, candidate = (
        load(file).state_dict()
        for file in ("out/student.safetensors", f"out/candidates/runs/{card['chosen']}-s0/student.safetensors")
    )
    assert all(torch.equal(kept[key], candidate[key]) for key in kept)
    assert run(*words).out == said.out  # continued: everything is there already
    other = run(*words[:-2], "seed=1", "--out", "out")
    assert other.err.splitlines()[-1].startswith("dfkd: out: out holds another run, which differs in seed")


def test_distil_stops_by_its_own_signal(
    run: Command, tmp_path: Path, teachers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate at which nothing changes all signals are flat: 4 of 20 log points, and a quarter of that."""
    monkeypatch.chdir(tmp_path)
    words = [f"teacher={teachers[0]}", f"student.weights={teachers[1]}", "student_train=fixed", f"sampler={INVERTED}"]
    words = ["distill", *words, "optimiser.learning_rate=1e-9", "budget.steps=40", "budget.batch=8", "stop.patience=3"]
    said = run(*words, "--out", "out")
    assert said.status == 0, said.err
    assert said.out.startswith("ok after 10 steps, stopped by its own signal, flat at step 8 (not a test score), ")
    card = json.loads(Path("out/card.json").read_text())
    assert (card["stopped_by_own_signal"], card["signal_flat_at_step"], card["steps"]) == (True, 8, 10)
    curve = [json.loads(line) for line in Path("out/curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [2, 4, 6, 8, 10]
    assert {key for key in curve[0] if key.startswith("signal_")} == {"signal_own", "signal_smoothed", "signal_uniform"}
    plain = run(*words[:-1], "--out", "plain")
    assert plain.out.startswith("ok after 40 steps, ")
    card = json.loads(Path("plain/card.json").read_text())
    assert (card["stopped_by_own_signal"], card["signal_flat_at_step"]) == (False, None)


@pytest.mark.filterwarnings("ignore:zskt. (batch 4 of|its preset leaves out)")
def test_distil_trains_as_the_recipe_says_with_a_preset(
    run: Command, tmp_path: Path, teachers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZSKT: 128 rows a step, where the budget says 8."""
    monkeypatch.chdir(tmp_path)
    recipe = "sampler={zskt: {latent: 4, batch: 4}}"
    words = ["distill", f"teacher={teachers[0]}", recipe, "budget.steps=2", "budget.batch=8"]
    asked = {}
    for preset in ("false", "true"):
        said = run(*words, f"preset={preset}", "--out", preset)
        assert said.status == 0, said.err
        card = json.loads(Path(preset, "card.json").read_text())
        asked[preset] = card["teacher_images"]
        assert card["preset"] is (preset == "true")
    assert asked["false"] < 128 <= asked["true"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["samplers=[uniform]", "sampler=uniform"], "sampler: expected one sampler, or several named by samplers"),
        (["samplers=[uniform]", "stop={}"], "stop: expected one sampler with it"),
        (["stop={}", "optimiser.schedule=one_cycle"], "stop: expected the schedule cosine or constant"),
        (["stop.patience=0"], "stop: patience: expected an integer >= 1, found 0"),
        (["stop.pateince=2"], "stop: option: unknown 'pateince'; the nearest is 'patience'"),
        (["samplers=[]"], "samplers: expected at least one sampler, found none"),
    ],
)
def test_distil_refuses_what_does_not_fit(
    run: Command, teachers: tuple[Path, Path], words: list[str], message: str
) -> None:
    said = run("distill", f"teacher={teachers[0]}", *words, "--out", "nowhere")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"dfkd: {message}")


@pytest.mark.parametrize("words", [["samplers=[uniform, gaussian]"], ["stop={patience: 2}"]])
def test_what_a_dry_run_prints_is_read_back(
    run: Command, tmp_path: Path, teachers: tuple[Path, Path], words: list[str]
) -> None:
    said = run("distill", f"teacher={teachers[0]}", *words, "--dry-run")
    (tmp_path / "again.yaml").write_text(said.out)
    assert run("distill", tmp_path / "again.yaml", "--dry-run").out == said.out
    assert ("sampler" in yaml.safe_load(said.out)) != ("samplers" in yaml.safe_load(said.out))
