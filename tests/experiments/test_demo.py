"""The numbers of README are those that the demo's study keeps, and they are what the demo is for."""

from pathlib import Path
from statistics import fmean, stdev

import pytest

from dfkd import results

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / "experiments" / "demo" / "results.jsonl"
pytestmark = pytest.mark.skipif(not KEPT.exists(), reason="the studies are not installed with the wheel")


def agreement(evaluation: str) -> dict[str, list[float]]:
    """In %, by sampler, a value for each seed."""
    values: dict[str, list[float]] = {}
    for line in results.read(KEPT):
        if (line.evaluation, line.metric) == (evaluation, "agreement") and line.value is not None:
            values.setdefault(line.sampler, []).append(100 * line.value)
    return values


def test_readme_quotes_what_was_measured() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for sampler in ("adversarial_deep_inversion", "real"):
        found = agreement("test")[sampler]
        assert f"{fmean(found):.1f} ± {stdev(found):.1f} %" in readme
    for evaluation in ("uniform", "draws of generative"):
        assert f"{fmean(agreement(evaluation)['real']):.1f} %" in readme


def test_the_demo_reaches_its_goals() -> None:
    found = agreement("test")
    assert len(found) >= 8
    assert all(len(values) == 3 for values in found.values())
    free = {line.sampler for line in results.read(KEPT) if line.data_free}
    assert fmean(found["real"]) >= 98.5
    assert max(fmean(found[sampler]) for sampler in free) >= 97.5
