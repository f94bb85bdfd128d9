"""A data-free run cannot read data: it works in a process where what reads data cannot even be imported."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd import load
from dfkd.models import read_card

BLOCKED = r"""
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] in (["dfkd", "data"], ["sklearn", "datasets"], ["torchvision", "datasets"]):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Refuse())
import torch
torch.set_num_threads(1)
from dfkd.cli import main
for words in WORDS:
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        print(f"STATUS {end.code}\n\0", end="", flush=True)
"""


def test_distil_without_any_way_to_read_data(tmp_path: Path, teachers: tuple[Path, Path]) -> None:
    """One process, five commands: the default sampler in small, a comparison by spec, a bank, two that want data."""
    inverted = "{pooled: {base: {deep_inversion: {steps: 2, batch: 16}}, round: 16}}"
    common = [f"teacher={teachers[0]}", "budget.steps=3", "budget.batch=8"]
    sampler = f"sampler={{adversarial: {{base: {inverted}, steps: 2}}}}"
    columns = "evaluate={columns: [uniform, draws], rows: 8}"
    compared = [f"samplers=[uniform, {inverted}]", columns, "seeds=[0]", "student=digits_cnn", "control_teacher=null"]
    commands = [
        ["distill", *common, sampler, "--out", "out"],
        ["compare", "own.yaml", *common, *compared, "--out", "compared", "--workers", "1"],
        [
            "synthesize",
            "deep_inversion",
            common[0],
            "sampler.deep_inversion.steps=2",
            "--n",
            "9",
            "--out",
            "bank",
            "--png",
        ],
        ["distill", *common, "sampler=real", "--out", "refused"],
        ["distill", *common, "sampler={mixture: {samplers: [uniform, real]}}", "--out", "refused"],
    ]
    (tmp_path / "own.yaml").write_text("objective: {kl: {temperature: 2}}\n")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.replace("WORDS", repr(commands))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    ended = [part.rpartition("STATUS ") for part in done.stdout.split("\n\0")]
    assert [status for _, _, status in ended if status] == ["0", "0", "0", "2", "2"], done.stderr
    distilled = ended[0][0]
    assert "agreement with the teacher (not a test score):" in distilled
    scores = re.findall(r"^  (.+?) +(\d+\.\d\d) %   KL (\d+\.\d{4}) nats$", distilled, re.MULTILINE)
    names = ["draws of adversarial", "draws of uniform, not trained on", "draws of gaussian, not trained on"]
    assert [name for name, _, _ in scores] == names
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert (card["data_free"], card["sources"], card["status"], card["steps"]) == (True, [], "ok", 3)
    for name, agreement, kl in scores:
        found = card["fidelity_not_a_test_score"][name]
        assert float(agreement) == pytest.approx(100 * found["agreement"], abs=0.01)
        assert float(kl) == pytest.approx(found["kl"], abs=1e-4)
    file = tmp_path / "out" / "student.safetensors"
    assert read_card(file) == card
    assert load(file)(torch.rand(2, 1, 8, 8)).shape == (2, 4)
    lines = [json.loads(line) for line in (tmp_path / "compared" / "results.jsonl").read_text().splitlines()]
    assert {line["evaluation"] for line in lines} >= {"uniform", "draws of uniform"}
    assert not [line for line in lines if line["evaluation"] == "test" or not line["data_free"]]
    index = json.loads((tmp_path / "bank" / "index.json").read_text())
    assert (index["rows"], index["data_free"], index["sources"], index["read"]) == (9, True, [], None)
    errors = [line for line in done.stderr.splitlines() if line.startswith("dfkd: ")]
    assert errors == ["dfkd: dfkd.data is blocked", "dfkd: dfkd.data is blocked"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "refused").exists()


def test_selfcheck_says_of_a_student_what_is_true_of_it(
    tmp_path: Path, teachers: tuple[Path, Path], run: Callable[..., Any]
) -> None:
    """A student that is the teacher agrees everywhere, with a divergence of zero."""
    words = [f"teacher={teachers[0]}", f"student.weights={teachers[0]}", "sampler={uniform: {labelling: eval}}"]
    words += ["budget.steps=1", "budget.batch=8", "optimiser.learning_rate=1e-9", "student_train=fixed"]
    assert run("distill", *words, "--out", tmp_path / "out").status == 0
    scores = json.loads((tmp_path / "out" / "card.json").read_text())["fidelity_not_a_test_score"]
    assert list(scores) == [
        "draws of uniform",
        "draws of gaussian, not trained on",
        "draws of smoothed, not trained on",
    ]
    assert scores["draws of uniform"]["agreement"] == 1.0
    assert scores["draws of uniform"]["kl"] < 1e-6
    # the teacher labels the other two by the statistics of a batch, which the student, as it will be used, has not
    assert all(found["kl"] >= 0.0 for found in scores.values())
