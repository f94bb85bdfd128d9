"""Feature fidelity against loops in Python, its identities and extremes, and which rows it is taken from."""

import math

import pytest
import torch
from torch import Tensor

from dfkd.fidelity import columns
from dfkd.fidelity.features import default_pairs, feature_scores, pair_name
from dfkd.pixels import to_pixels
from dfkd.problem import PENULTIMATE, Probe

N = 6
GENERATOR = torch.Generator().manual_seed(41)
STUDENT = torch.randn(N, 3, generator=GENERATOR) + 0.5
TEACHER = torch.randn(N, 5, generator=GENERATOR)
Table = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def slow_cka(student: Table, teacher: Table) -> float:
    """|Y^T X|^2 / (|X^T X| |Y^T Y|) of features without their mean: the form without kernels."""

    def centred(f: Table) -> Table:
        """(d, n)"""
        return [[value - sum(column) / len(column) for value in column] for column in zip(*f, strict=True)]

    def square(a: Table, b: Table) -> float:
        return sum(dot(u, v) ** 2 for u in a for v in b)

    x, y = centred(student), centred(teacher)
    return square(x, y) / math.sqrt(square(x, x) * square(y, y))


def slow_fkd(student: Table, teacher: Table) -> float:
    def correlation(f: Table, i: int, j: int) -> float:
        return dot(f[i], f[j]) / math.sqrt(dot(f[i], f[i]) * dot(f[j], f[j]))

    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]
    return sum((correlation(student, i, j) - correlation(teacher, i, j)) ** 2 for i, j in pairs) / len(pairs)


def test_equals_its_definitions() -> None:
    found = feature_scores(STUDENT, TEACHER)
    assert found["cka"] == pytest.approx(slow_cka(STUDENT.tolist(), TEACHER.tolist()), rel=1e-6)
    assert found["fkd"] == pytest.approx(slow_fkd(STUDENT.tolist(), TEACHER.tolist()), rel=1e-6)
    assert 0.05 < (found["cka"] or 0.0) < 0.95


def test_is_perfect_for_equal_features_turned_and_scaled() -> None:
    turned, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    found = feature_scores(7.0 * TEACHER @ turned, TEACHER)
    assert found["cka"] == pytest.approx(1.0, abs=1e-6)
    assert found["fkd"] == pytest.approx(0.0, abs=1e-9)
    shifted = feature_scores(TEACHER + 2.0, TEACHER)
    assert shifted["cka"] == pytest.approx(1.0, abs=1e-6)
    assert (shifted["fkd"] or 0.0) > 0.01  # correlations of rows are not of what varies


def test_does_not_see_the_order_of_rows_but_whose_they_are() -> None:
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert feature_scores(STUDENT[order], TEACHER[order])["cka"] == pytest.approx(
        feature_scores(STUDENT, TEACHER)["cka"]
    )
    assert (
        abs((feature_scores(STUDENT[order], TEACHER)["cka"] or 0) - (feature_scores(STUDENT, TEACHER)["cka"] or 0))
        > 1e-3
    )


def test_maps_count_as_they_lie_in_memory() -> None:
    maps = TEACHER.view(N, 5, 1, 1).expand(N, 5, 2, 2)
    found, flat = feature_scores(STUDENT, maps), feature_scores(STUDENT, TEACHER)
    assert found["cka"] == pytest.approx(flat["cka"])
    assert found["fkd"] == pytest.approx(flat["fkd"])


@pytest.mark.parametrize(("scale", "shift"), [(1e15, 0.0), (1e-15, 0.0), (1.0, 1e4)])
def test_large_small_and_distant_features(scale: float, shift: float) -> None:
    found = feature_scores(scale * STUDENT.double() + shift, TEACHER)
    assert found["cka"] == pytest.approx(feature_scores(STUDENT, TEACHER)["cka"], rel=1e-4)
    assert math.isfinite(found["fkd"] or math.nan)


@pytest.mark.parametrize("constant", [torch.zeros(N, 3), STUDENT[:1].expand(N, 3)])
def test_features_that_are_all_the_same_have_no_alignment(constant: Tensor) -> None:
    found = feature_scores(constant, TEACHER)
    assert found["cka"] is None
    assert (found["fkd"] or 0.0) > 0.0
    assert feature_scores(STUDENT, constant)["cka"] is None


def test_what_is_undefined_is_none() -> None:
    assert feature_scores(STUDENT[:1], TEACHER[:1]) == {"cka": None, "fkd": None}
    broken = STUDENT.clone()
    broken[2, 1] = math.nan
    assert feature_scores(broken, TEACHER) == {"cka": None, "fkd": None}
    with pytest.raises(ValueError, match="teacher: expected features of 6 rows, found 5"):
        feature_scores(STUDENT, TEACHER[:5])


def test_names_of_pairs() -> None:
    assert pair_name("cka", ("layer1", "layer1")) == "cka@layer1"
    assert pair_name("fkd", ("conv2", "layer1")) == "fkd@conv2=layer1"


def test_the_penultimate_features_where_both_models_have_them(teacher: Probe, student: Probe) -> None:
    assert default_pairs(student, teacher) == ((PENULTIMATE, PENULTIMATE),)
    headless = Probe(torch.nn.Sequential(torch.nn.Conv2d(1, 5, 8), torch.nn.Flatten()), teacher.spec)
    assert default_pairs(headless, teacher) == default_pairs(student, headless) == ()


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_features_are_those_of_the_rows_asked_for(teacher: Probe, mode: str) -> None:
    """In `batch` the rows are dealt into mixed batches, and still come back in the order in which they stand."""
    x = torch.randint(0, 256, (23, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    kept = torch.tensor([1, 2, 11, 22])
    found = columns.answers(teacher, x, teacher.spec, mode, batch=8, taps=("3", PENULTIMATE), kept=kept)  # type: ignore[arg-type]
    everything = columns.answers(teacher, x, teacher.spec, mode, batch=8, taps=(PENULTIMATE,))  # type: ignore[arg-type]
    assert torch.equal(found.logits, everything.logits)
    assert torch.equal(found.features[PENULTIMATE], everything.features[PENULTIMATE][kept])
    assert found.features["3"].shape == (4, 54)
    weight, bias = (teacher.module.get_parameter(f"7.{name}") for name in ("weight", "bias"))
    torch.testing.assert_close(everything.features[PENULTIMATE] @ weight.T + bias, everything.logits)
    if mode == "eval":
        with torch.no_grad():
            torch.testing.assert_close(found.logits, teacher.module(to_pixels(x, teacher.spec)))
