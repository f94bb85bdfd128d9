"""The study of the BatchNorm weight, on a digits net that is trained a little."""

import json

import pytest

inversion = pytest.importorskip("experiments.inversion.__main__", reason="the studies are not installed with the wheel")


def test_one_weight_serves_the_digits_net(capsys: pytest.CaptureFixture[str]) -> None:
    optimiser = "optimiser={name: adamw, learning_rate: 0.01, schedule: one_cycle}"
    inversion.main(["model=digits_cnn", "data=digits", optimiser, "budget={steps: 150, batch: 128}", "rows=100"])
    found = json.loads(capsys.readouterr().out)
    assert found["target_accuracy"] > 0.9  # measured: .99; chance is 0.1
    assert found["distance_inverted"] < 0.3 * found["distance_noise"]  # measured: 0.10 of it
    assert found["distance_real"] < found["distance_inverted"]
