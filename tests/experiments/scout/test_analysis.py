"""The correlations of the scout's study, by hand."""

from typing import Any

import pytest

analysis = pytest.importorskip("experiments.scout.analysis", reason="the studies are not installed with the wheel")


def test_spearman_by_hand() -> None:
    """1 - 6 sum d^2 / n (n^2 - 1) without ties; with ties Pearson's of the mean ranks; undefined for a constant."""
    assert analysis.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 9]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert analysis.spearman([1, 2, 3], [9, 5, 1]) == pytest.approx(-1.0)
    assert analysis.spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    assert analysis.spearman([1, 1, 1], [1, 2, 3]) is None


def test_correlation_interval_and_regret() -> None:
    order = {"a": 0.9, "b": 0.8, "c": 0.3, "d": 0.1, "not trained": 1.0}
    agreement = {"a": 0.7, "b": 0.9, "c": 0.5, "d": 0.2}
    found = analysis.correlate(order, agreement)
    assert (found.first, found.samplers) == (("a",), 4)
    assert found.regret == pytest.approx(0.2)
    assert found.rho == pytest.approx(0.8)
    assert -1.0 <= found.low < found.rho <= found.high <= 1.0
    assert analysis.correlate({"a": 1.0, "b": 0.0}, agreement) is None


def test_what_shares_the_first_place_shares_the_regret() -> None:
    """Else the sampler that happens to be listed first would be the choice; sums in another order are still ties."""
    agreement = {"a": 0.9, "b": 0.5, "c": 0.4}
    found = analysis.correlate({"a": 0.3, "b": 0.1 + 0.2, "c": 0.0}, agreement)
    assert found.first == ("a", "b")
    assert found.regret == pytest.approx(0.2)


def row(agreement: float | None, diagnostics: dict[str, float] | None, **more: Any) -> dict[str, Any]:
    return {
        "student": None if agreement is not None else "diverged",
        "scout": None if diagnostics is not None else "too slow",
        "agreement": [agreement],
        "diagnostics": [diagnostics or {}],
        "preference": [agreement],
        "data_free": True,
        "follows_student": False,
    } | more


def saw(entropy: float, distance: float, variety: float) -> dict[str, float]:
    return {"histogram_entropy": entropy, "batchnorm_gauss": distance, "feature_rank": variety}


ROWS = {
    "good": row(0.9, saw(1.0, 1.0, 9.0), data_free=False),
    "fair": row(0.7, saw(0.8, 2.0, 5.0), follows_student=True),
    "poor": row(0.3, saw(0.4, 3.0, 7.0)),
    "worst": row(0.1, saw(0.2, 4.0, 1.0)),
    "untrained": row(None, saw(0.9, 0.5, 8.0)),
    "unseen": row(0.8, None),
}


def test_orders_rank_what_has_a_student() -> None:
    """Shares beaten of the three others, by hand; the untrained would stand between them."""
    found = analysis.orders(ROWS, draws=10_000, classes=10)
    assert found["score"] == pytest.approx({"good": 1.0, "fair": 5 / 9, "poor": 4 / 9, "worst": 0.0})
    assert found["batchnorm_gauss"] == pytest.approx({"good": 1.0, "fair": 2 / 3, "poor": 1 / 3, "worst": 0.0})
    assert found["feature_rank"] == pytest.approx({"good": 1.0, "fair": 1 / 3, "poor": 2 / 3, "worst": 0.0})
    assert set(found["preference (after training)"]) == {"good", "fair", "poor", "worst", "unseen"}


def test_a_score_is_the_mean_over_seeds() -> None:
    worse = [saw(0.1, 5.0, 0.5), saw(0.8, 2.0, 5.0), saw(0.4, 3.0, 7.0), saw(0.2, 4.0, 1.0)]
    seen = zip(list(ROWS)[:4], worse, strict=True)
    rows = {label: ROWS[label] | {"diagnostics": [*ROWS[label]["diagnostics"], again]} for label, again in seen}
    assert analysis.orders(rows, draws=10_000, classes=10)["score"]["good"] == pytest.approx(0.5)


def test_groups_are_what_they_are_called() -> None:
    found = analysis.correlations(ROWS, analysis.orders(ROWS, draws=10_000, classes=10))
    assert {group: by["score"]["samplers"] for group, by in found.items()} == {
        "all": 4,
        "data-free": 3,
        "do not follow the student": 3,
    }
    assert found["data-free"]["score"]["first"] == ("fair",)
    assert found["do not follow the student"]["score"]["first"] == ("good",)
    assert found["all"]["score"]["rho"] == pytest.approx(1.0)
    assert found["all"]["feature_rank"]["rho"] == pytest.approx(0.8)


def test_what_is_farthest_from_its_place() -> None:
    order = {"good": 0.1, "fair": 0.9, "poor": 0.9, "worst": 0.0, "untrained": 1.0}
    assert analysis.misplaced(ROWS, order) == [("good", 3, 1), ("poor", 1, 3), ("fair", 1, 2)]
    assert analysis.misplaced(ROWS, {"good": 0.9, "fair": 0.5, "poor": 0.1}) == []
