"""Quality and coverage against plain Python and SciPy, on Gaussians, at their extremes, and what they are asked of."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from dfkd.fidelity import QUALITY, Reference, frechet_distance, precision_recall_density_coverage
from dfkd.fidelity.quality import copies, features
from dfkd.plan import some_rows
from dfkd.problem import Probe, UnsupportedProblem
from dfkd.types import InputSpec

NAMES = ("feature_precision", "feature_recall", "density", "coverage")


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow(real: list[list[float]], fake: list[list[float]], k: int) -> tuple[float, float, float, float]:
    """The four definitions, loop by loop."""

    def radii(rows: list[list[float]]) -> list[float]:
        return [sorted(math.dist(a, b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    around_real, around_fake = radii(real), radii(fake)
    precision = sum(any(math.dist(f, r) <= a for r, a in zip(real, around_real, strict=True)) for f in fake)
    recall = sum(any(math.dist(r, f) <= a for f, a in zip(fake, around_fake, strict=True)) for r in real)
    density = sum(math.dist(f, r) <= a for f in fake for r, a in zip(real, around_real, strict=True))
    covered = sum(any(math.dist(f, r) <= a for f in fake) for r, a in zip(real, around_real, strict=True))
    return precision / len(fake), recall / len(real), density / (k * len(fake)), covered / len(real)


@pytest.mark.parametrize("backend", ["torch", "faiss", "sklearn"])
@pytest.mark.parametrize(("k", "d", "shift", "scale"), [(1, 3, 0.5, 1.0), (5, 2, 1.0, 0.3), (3, 8, 0.0, 1.5)])
def test_equals_the_definitions(k: int, d: int, shift: float, scale: float, backend: str) -> None:
    real, fake = normal(40, d, 1), normal(33, d, 2, shift, scale)
    found = precision_recall_density_coverage(real, fake, k, backend)
    assert tuple(found) == NAMES
    assert list(found.values()) == pytest.approx(slow(real.tolist(), fake.tolist(), k), abs=1e-12)
    assert len(set(found.values())) > 2
    assert all(0.0 < (value or 0.0) < 2.0 for value in found.values())


def test_equals_the_definitions_where_rows_repeat_and_distances_tie() -> None:
    real, fake = (torch.randint(0, 3, (n, 3), generator=torch.Generator().manual_seed(n)).float() for n in (40, 31))
    found = precision_recall_density_coverage(real, fake, 3)
    assert list(found.values()) == pytest.approx(slow(real.tolist(), fake.tolist(), 3), abs=1e-12)


@pytest.mark.parametrize("d", [1, 4, 300])
def test_a_set_beside_itself_and_beside_one_far_away(d: int) -> None:
    """Each ball holds its centre and k neighbours: density is (k + 1) / k."""
    x = normal(60, d, 3, shift=7.0).double()
    found = precision_recall_density_coverage(x, x)
    assert [found[name] for name in NAMES] == pytest.approx([1.0, 1.0, 1.2, 1.0], abs=1e-12)
    assert list(precision_recall_density_coverage(x, x + 1e3).values()) == [0.0] * 4
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9 * d)
    # equal covariances: the distance of the means alone
    assert frechet_distance(x, x + 1e3) == pytest.approx(1e6 * d, rel=1e-9)


def test_a_collapsed_sampler_is_precise_and_covers_nothing() -> None:
    real = normal(100, 4, 4)
    found = precision_recall_density_coverage(real, real[:1].expand(100, 4))
    assert found["feature_precision"] == 1.0
    assert found["feature_recall"] == 0.01  # of the balls of radius 0 around the copies only the row itself is in one
    assert (found["coverage"] or 0.0) < 0.2


@pytest.mark.parametrize(("n", "m", "defined"), [(5, 50, False), (50, 5, False), (6, 6, True), (1, 1, False)])
def test_no_more_rows_than_neighbours_is_undefined(n: int, m: int, defined: bool) -> None:
    found = precision_recall_density_coverage(normal(n, 2, 1), normal(m, 2, 2), k=5)
    assert tuple(found) == NAMES
    assert {value is not None for value in found.values()} == {defined}


# -- Fréchet distance --------------------------------------------------------------------------------------------------


def slow_frechet(first: Tensor, second: Tensor) -> float:
    a, b = first.double().numpy(), second.double().numpy()
    c1, c2 = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    root = sqrtm(c1 @ c2)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(c1) + np.trace(c2) - 2 * np.trace(root).real)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (40, 50, 1), (300, 90, 40)])
def test_frechet_equals_the_root_of_the_product_by_scipy(n: int, m: int, d: int) -> None:
    mix = normal(d, d, 5)
    first, second = normal(n, d, 6) @ mix, normal(m, d, 7, shift=0.3, scale=1.4)
    assert frechet_distance(first, second) == pytest.approx(slow_frechet(first, second), rel=1e-6)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_frechet_of_gaussians_that_are_known() -> None:
    """n = 200 000, d = 2: |m|^2 + sum (s1 - s2)^2 = 0.25 + 1 + 0.25; its standard error is below 0.01."""
    first = normal(200_000, 2, 8)
    second = normal(200_000, 2, 9) * torch.tensor([2.0, 0.5]) + torch.tensor([0.5, 0.0])
    assert frechet_distance(first, second) == pytest.approx(1.5, abs=0.05)


def test_frechet_with_fewer_rows_than_features_and_with_features_that_stand_still() -> None:
    """Singular covariances, where a matrix root by sqrtm fails or turns complex: rotated, the distance is the same."""
    first, second = normal(7, 30, 1), normal(5, 30, 2)
    turn = torch.linalg.qr(normal(30, 30, 3).double()).Q
    turned = frechet_distance(first.double() @ turn, second.double() @ turn)
    assert turned == pytest.approx(frechet_distance(first, second), rel=1e-6)
    still = torch.zeros(20, 3)
    assert frechet_distance(still, still) == 0.0
    assert frechet_distance(still, still + 2.0) == pytest.approx(12.0)
    wide = normal(20, 3, 4)
    assert frechet_distance(still, wide - wide.mean(dim=0)) == pytest.approx(float(wide.var(dim=0).sum()), rel=1e-6)
    assert frechet_distance(still[:1], wide) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    good, wrong = normal(20, 3, 1), normal(20, 3, 1)
    wrong[4, 1] = bad
    with pytest.raises(ValueError, match="expected finite numbers"):
        precision_recall_density_coverage(good, wrong)
    with pytest.raises(ValueError, match="fake: expected finite numbers"):
        precision_recall_density_coverage(good, wrong[:5])
    with pytest.raises(ValueError, match="second: expected finite numbers"):
        frechet_distance(good, wrong)


def test_copies_by_hand() -> None:
    found = copies(torch.tensor([0.0, 1.0, 2.0, 9.0]), torch.tensor([2.0, 3.0, 5.0]))
    assert found == {"nearest": 1.5, "nearest_test": 3.0, "copies": 0.75}
    assert copies(torch.tensor([1.0]), None) == {"nearest": 1.0, "nearest_test": None, "copies": None}


# -- of a teacher ------------------------------------------------------------------------------------------------------


def images(n: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_features_are_what_the_last_layer_is_given(teacher: Probe, spec: InputSpec) -> None:
    x = images(11, 1)
    with torch.no_grad():
        expected = teacher.module[:-1](x / 255.0)  # type: ignore[index]  # a Sequential
    torch.testing.assert_close(features(teacher, x, spec, batch=4), expected)
    assert teacher.counts["evaluate"] == {"forward": 11, "backward": 0}
    assert not any(part._forward_pre_hooks for part in teacher.module.modules())


def test_training_rows_are_copies_and_others_are_not(teacher: Probe, spec: InputSpec) -> None:
    training, held_out = images(60, 1), images(40, 2)
    reference = Reference.of(teacher, spec, training, held_out)
    copied = reference.score(training[:30], some_rows, 100)
    assert set(copied.values) == set(QUALITY)
    assert not copied.reasons
    assert (copied.n, copied.training_rows, copied.k) == (30, 60, 5)
    for kind in ("pixels", "features"):
        assert copied.values[f"nearest_{kind}"] == pytest.approx(0.0, abs=1e-4)
        assert copied.values[f"copies_{kind}"] == 1.0
        assert (copied.values[f"nearest_{kind}_test"] or 0.0) > 0.01
    itself = reference.score(held_out, some_rows, 100).values
    assert [itself[name] for name in ("feature_precision", "feature_recall", "coverage")] == [1.0, 1.0, 1.0]
    assert itself["frechet_distance"] == pytest.approx(0.0, abs=1e-5)
    assert itself["nearest_pixels"] == itself["nearest_pixels_test"]
    assert itself["copies_pixels"] == pytest.approx(1 / 40)


def test_distances_in_pixels_are_root_mean_squares(teacher: Probe, spec: InputSpec) -> None:
    grey = torch.full((6, 1, 8, 8), 100, dtype=torch.uint8)
    reference = Reference.of(teacher, spec, grey, grey + 51)
    found = reference.score(grey + 102, some_rows, 6).values
    assert (found["nearest_pixels"], found["nearest_pixels_test"]) == pytest.approx((0.4, 0.2))
    wide = InputSpec((1, 8, 8), 5, low=-1.0, high=1.0)
    found = Reference.of(Probe(teacher.module, wide), wide, grey, grey + 51).score(grey + 102, some_rows, 6).values
    assert found["nearest_pixels"] == pytest.approx(0.8)


def test_rows_are_as_many_on_each_side_and_the_same_for_all(teacher: Probe, spec: InputSpec) -> None:
    asked: list[tuple[int, int]] = []

    def pick(n: int, m: int) -> Tensor:
        asked.append((n, m))
        return some_rows(n, m)

    found = Reference.of(teacher, spec, images(60, 1), images(40, 2)).score(images(100, 3), pick, 20)
    assert asked == [(100, 20), (40, 20)]
    assert (found.n, found.training_rows) == (20, 60)


def test_without_held_out_rows_draws_are_beside_training_rows(teacher: Probe, spec: InputSpec) -> None:
    training = images(30, 1)
    found = Reference.of(teacher, spec, training).score(training, some_rows, 100).values
    assert (found["coverage"], found["nearest_pixels"]) == (1.0, 0.0)
    assert (found["nearest_pixels_test"], found["copies_features"]) == (None, None)


class Twice(nn.Module):
    """Logits of no linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x.flatten(1)[:, :5]


def test_a_teacher_without_penultimate_features_leaves_pixels(spec: InputSpec) -> None:
    teacher = Probe(Twice(), spec)
    found = Reference.of(teacher, spec, images(30, 1), images(20, 2)).score(images(20, 3), some_rows, 100)
    missing = {name for name in QUALITY if found.values[name] is None}
    assert missing == set(QUALITY) - {"nearest_pixels", "nearest_pixels_test", "copies_pixels"} == set(found.reasons)
    assert all("needs a teacher with penultimate" in reason for reason in found.reasons.values())
    with pytest.raises(UnsupportedProblem, match="needs a teacher with penultimate"):
        features(teacher, images(3, 1), spec)


def test_few_rows_and_features_that_overflow_have_reasons(teacher: Probe, spec: InputSpec) -> None:
    reference = Reference.of(teacher, spec, images(30, 1), images(20, 2))
    few = reference.score(images(4, 3), some_rows, 100)
    assert {name for name, value in few.values.items() if value is None} == set(NAMES) == set(few.reasons)
    assert set(few.reasons.values()) == {"expected more than 5 rows on each side, found 4"}
    with torch.no_grad():
        teacher.module[3].weight.fill_(torch.inf)  # type: ignore[index]
    found = reference.score(images(20, 3), some_rows, 100)
    assert found.values["coverage"] is None
    assert "queries: expected finite numbers" in found.reasons["coverage"]
    assert found.values["nearest_pixels"] is not None


def test_nothing_depends_on_the_order_of_draws(teacher: Probe, spec: InputSpec) -> None:
    reference, draws = Reference.of(teacher, spec, images(30, 1), images(20, 2)), images(20, 3)
    values: list[dict[str, Any]] = [
        dict(reference.score(x, some_rows, 100).values) for x in (draws, draws[torch.randperm(20)])
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
