"""Terms one by one: against slow references in Python floats, their identities, their extremes, their gradients."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dfkd.types import InputSpec, Outputs
from samplers import DeepInversion
from samplers.ingredients import (
    Activation,
    Balance,
    Disagreement,
    Divergence,
    OneHot,
    PixelNorm,
    Smoothness,
    TotalVariation,
    Views,
    disagreement,
)

STUDENT, TEACHER = 3.0 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
DIVERGENCES: tuple[Divergence, ...] = ("kl", "l1", "js", "masked_kl")


def seen(teacher: Tensor | None = None, student: Tensor | None = None, x: Tensor | None = None, **rest: Any) -> Views:
    """What a term is shown, by hand."""
    x = torch.zeros(1, 1, 2, 2) if x is None else x
    asked = {"teacher": teacher, "student": student}
    answers = {who: Outputs(logits) for who, logits in asked.items() if logits is not None}
    spec = rest.pop("spec", InputSpec((1, 2, 2), 4))
    return cast(Views, SimpleNamespace(x=x, spec=spec, **answers, **rest))


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_disagreement(student: list[float], teacher: list[float], divergence: str, temperature: float) -> float:
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    if divergence == "l1":
        return sum(abs(a - b) for a, b in zip(teacher, student, strict=True))
    if divergence == "js":
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        return 0.5 * slow_kl(p, m) + 0.5 * slow_kl(q, m)
    if divergence == "masked_kl" and p.index(max(p)) != q.index(max(q)):
        return 0.0
    return slow_kl(p, q)


# -- disagreement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_disagreement_equals_its_definition(divergence: Divergence, temperature: float) -> None:
    student = STUDENT.clone()
    student[0] = TEACHER[0] + torch.tensor([0.1, -0.2, 0.3, 0.0])  # a row where both give the same class
    pairs = zip(student.tolist(), TEACHER.tolist(), strict=True)
    slow = torch.tensor([slow_disagreement(s, t, divergence, temperature) for s, t in pairs])
    torch.testing.assert_close(disagreement(student, TEACHER, divergence, temperature), slow)
    term = Disagreement(divergence, temperature)
    torch.testing.assert_close(term(None, seen(TEACHER, student)), -slow.mean())


def test_masked_kl_counts_agreeing_rows_only() -> None:
    student = STUDENT.clone()
    student[1:3] = 0.5 * TEACHER[1:3]
    same = torch.tensor([False, True, True, False, False])
    assert torch.equal(student.argmax(dim=1) == TEACHER.argmax(dim=1), same)
    assert torch.equal(disagreement(student, TEACHER, "masked_kl") > 0.0, same)


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    there, back = disagreement(STUDENT, TEACHER, "js", 3.0), disagreement(TEACHER, STUDENT, "js", 3.0)
    torch.testing.assert_close(there, back)
    far = disagreement(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]), "js")
    torch.testing.assert_close(far, torch.tensor([math.log(2.0)]))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_disagreement_is_zero_for_equal_models_and_finite_for_certain_ones(divergence: Divergence) -> None:
    assert disagreement(TEACHER, TEACHER, divergence).abs().max() < 1e-6
    student = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [5e3, 0.0]], requires_grad=True)
    loss = Disagreement(divergence)(None, seen(teacher, student))
    slopes = torch.autograd.grad(loss, [student, teacher])
    assert all(torch.isfinite(value).all() for value in (loss, *slopes))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_disagreement_pulls_at_both_models_and_against_agreement(divergence: Divergence) -> None:
    teacher = TEACHER.clone().requires_grad_(True)
    student = (0.5 * TEACHER).requires_grad_(True)
    loss = Disagreement(divergence)(None, seen(teacher, student))
    to_student, to_teacher = torch.autograd.grad(loss, [student, teacher])
    assert to_teacher.abs().max() > 0.0
    with torch.no_grad():
        after = Disagreement(divergence)(None, seen(teacher, student - 0.1 * to_student))
    assert after < loss  # one step down the term is one step away from the teacher


def slow_published_js(student: list[float], teacher: list[float], temperature: float) -> float:
    """Swapped arguments, each of the three clamped to [0.01, 0.99] after the mean is formed."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    p, q, m = ([min(max(v, 0.01), 0.99) for v in part] for part in (p, q, m))
    return 0.5 * slow_kl(m, p) + 0.5 * slow_kl(m, q)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_published_js_equals_its_definition(temperature: float) -> None:
    pairs = zip(STUDENT.tolist(), TEACHER.tolist(), strict=True)
    slow = [slow_published_js(s, t, temperature) for s, t in pairs]
    term = Disagreement("js", temperature, variant="swapped_clamped")
    assert term(None, seen(TEACHER, STUDENT)).item() == pytest.approx(-sum(slow) / 5, rel=1e-5)
    assert Disagreement("js", temperature)(None, seen(TEACHER, STUDENT)).item() != pytest.approx(-sum(slow) / 5, 0.05)
    far = seen(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]))
    assert term(None, far).item() == pytest.approx(0.5 * math.log(0.01 * 0.99) - math.log(0.5), rel=1e-5)  # above ln 2


def test_the_published_js_gives_no_gradient_on_the_clamp() -> None:
    """With two hundred classes and no sure one all probabilities are below 0.01."""
    logits = 0.1 * torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(1))
    student, teacher = logits[0].requires_grad_(True), logits[1].detach()
    for variant, flat in (("swapped_clamped", True), ("exact", False)):
        loss = Disagreement("js", variant=cast(Any, variant))(None, seen(teacher, student))
        (slope,) = torch.autograd.grad(loss, student)
        assert bool((slope == 0.0).all()) == flat


def test_a_ceiling_ends_the_gradient() -> None:
    student = STUDENT.clone().requires_grad_(True)
    height = -Disagreement("kl")(None, seen(TEACHER, STUDENT)).item()
    for ceiling, flat in ((0.9 * height, True), (1.1 * height, False)):
        loss = Disagreement("kl", ceiling=ceiling)(None, seen(TEACHER, student))
        (slope,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(-min(height, ceiling), rel=1e-5)
        assert bool((slope == 0.0).all()) == flat


def test_per_class_is_the_mean_over_all_elements() -> None:
    difference = [
        abs(a - b) for s, t in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True) for a, b in zip(s, t, strict=True)
    ]
    term = Disagreement("l1", per_class=True)
    assert term(None, seen(TEACHER, STUDENT)).item() == pytest.approx(-sum(difference) / 20, rel=1e-5)


def test_student_mode_asks_the_student_in_that_mode() -> None:
    views = seen(TEACHER, TEACHER)
    asked: list[str] = []

    def student_as(mode: str) -> Outputs:
        asked.append(mode)
        return Outputs(STUDENT)

    views.student_as = student_as  # type: ignore[method-assign]
    assert Disagreement("kl")(None, views).abs() < 1e-6
    loss = Disagreement("kl", student_mode="batch")(None, views)
    assert asked == ["batch"]
    torch.testing.assert_close(loss, Disagreement("kl")(None, seen(TEACHER, STUDENT)))


# -- features ----------------------------------------------------------------------------------------------------


def test_activation_equals_its_definition() -> None:
    features = STUDENT.clone().requires_grad_(True)
    loss = Activation()(None, seen(penultimate=features))
    slow = -sum(abs(v) for row in STUDENT.tolist() for v in row) / 20
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    (slope,) = torch.autograd.grad(loss, features)
    assert torch.equal(slope.sign(), -STUDENT.sign())  # down the term is away from 0


# -- classes -----------------------------------------------------------------------------------------------------


def test_one_hot_equals_its_definition() -> None:
    target = torch.tensor([3, 0, 1, 2, 2])
    rows = [softmax(row) for row in TEACHER.tolist()]
    slow = -sum(math.log(p[y]) for p, y in zip(rows, target.tolist(), strict=True)) / 5
    assert OneHot("target")(None, seen(TEACHER, target=target)).item() == pytest.approx(slow, rel=1e-5)
    slow = -sum(math.log(max(p)) for p in rows) / 5
    assert OneHot("argmax")(None, seen(TEACHER)).item() == pytest.approx(slow, rel=1e-5)


def test_one_hot_needs_a_target_to_aim_at() -> None:
    with pytest.raises(ValueError, match="target: expected a class for each row, found None"):
        OneHot("target")(None, seen(TEACHER, target=None))


def test_balance_equals_its_definition() -> None:
    rows = [softmax(row) for row in TEACHER.tolist()]
    mean = [sum(column) / 5 for column in zip(*rows, strict=True)]
    slow = sum(p * math.log(p) for p in mean)
    assert Balance()(None, seen(TEACHER)).item() == pytest.approx(slow, rel=1e-5)


def test_balance_is_minus_ln_k_for_equal_classes_and_0_for_one_class() -> None:
    uniform, certain = torch.zeros(3, 4), 1e4 * torch.eye(4)
    assert Balance()(None, seen(uniform)).item() == pytest.approx(-math.log(4), rel=1e-6)
    assert Balance()(None, seen(certain)).item() == pytest.approx(-math.log(4), rel=1e-6)
    one = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    loss = Balance()(None, seen(one))
    (slope,) = torch.autograd.grad(loss, one)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(slope).all()


def test_balance_does_not_change_when_the_batch_is_doubled() -> None:
    doubled = torch.cat([TEACHER, TEACHER])
    torch.testing.assert_close(Balance()(None, seen(doubled)), Balance()(None, seen(TEACHER)))


# -- pixels ------------------------------------------------------------------------------------------------------

IMAGES = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(2))


def slow_shifts(x: Tensor) -> list[list[list[float]]]:
    """For each of the four directions, the differences of each row."""
    n, c, h, w = x.shape
    pixel = x.tolist()
    out = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows = []
        for i in range(n):
            row = []
            for j in range(c):
                for a in range(h - down):
                    for b in range(max(0, -right), w - max(0, right)):
                        row.append(pixel[i][j][a + down][b + right] - pixel[i][j][a][b])
            rows.append(row)
        out.append(rows)
    return out


def test_total_variation_equals_its_definition() -> None:
    shifts = slow_shifts(IMAGES)
    l1 = sum(sum(abs(d) for row in rows for d in row) / sum(len(row) for row in rows) for rows in shifts)
    l2 = sum(math.sqrt(sum(sum(d * d for d in row) for row in rows) / len(rows)) for rows in shifts)
    assert TotalVariation("l1")(None, seen(x=IMAGES)).item() == pytest.approx(l1, rel=1e-5)
    assert TotalVariation("l2")(None, seen(x=IMAGES)).item() == pytest.approx(l2, rel=1e-5)


def test_pixel_norm_equals_its_definition() -> None:
    slow = sum(math.sqrt(sum((v - 0.5) ** 2 for v in row.flatten().tolist())) for row in IMAGES) / 3
    assert PixelNorm()(None, seen(x=IMAGES)).item() == pytest.approx(slow, rel=1e-5)


def slow_smoothness(x: Tensor, sigma: float) -> float:
    """Every pixel against the weighted mean of its 25 neighbours, those beyond an edge mirrored in it."""
    n, c, h, w = x.shape
    pixel, total = x.tolist(), 0.0

    def mirrored(at: int, size: int) -> int:
        return -at if at < 0 else 2 * (size - 1) - at if at >= size else at

    weights = {(a, b): math.exp(-(a * a + b * b) / (2 * sigma**2)) for a in range(-2, 3) for b in range(-2, 3)}
    for i in range(n):
        for j in range(c):
            for down in range(h):
                for right in range(w):
                    blurred = sum(
                        weight * pixel[i][j][mirrored(down + a, h)][mirrored(right + b, w)]
                        for (a, b), weight in weights.items()
                    ) / sum(weights.values())
                    total += (pixel[i][j][down][right] - blurred) ** 2
    return total / (n * c * h * w)


@pytest.mark.parametrize("sigma", [0.7, 1.4142135, 3.0])
def test_smoothness_equals_its_definition(sigma: float) -> None:
    assert Smoothness(sigma)(None, seen(x=IMAGES)).item() == pytest.approx(slow_smoothness(IMAGES, sigma), rel=1e-4)


def test_smoothness_is_by_default_the_published_blur() -> None:
    """Its code has weights exp(-(d / 2)^2), d the distance in pixels."""
    assert Smoothness().sigma == pytest.approx(2**0.5)
    smallest = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    assert Smoothness()(None, seen(x=smallest)).item() == pytest.approx(slow_smoothness(smallest, 2**0.5), rel=1e-4)


def test_smoothness_names_what_is_too_small_to_blur(make_problem: Callable[..., Any]) -> None:
    Smoothness().init(make_problem(shape=(1, 3, 3)), 0)
    with pytest.raises(ValueError, match=r"smoothness: expected images of at least 3x3 pixels, found \(1, 2, 8\)"):
        Smoothness().init(SimpleNamespace(spec=InputSpec((1, 2, 8), 4)), 0)  # type: ignore[arg-type]


def test_deep_inversion_has_smoothness_by_its_weight(make_problem: Callable[..., Any]) -> None:
    problem = make_problem()
    sampler = DeepInversion(batchnorm=0.0, one_hot=0.0, smoothness=0.5)
    x = torch.rand(2, *problem.spec.shape, generator=torch.Generator().manual_seed(1))
    with sampler.objective.watching(problem) as look:
        found = sampler.objective(sampler.objective.init(problem, 0, "test"), look(x, None)).item()
    assert found == pytest.approx(0.5 * slow_smoothness(x, 2**0.5), rel=1e-4)


@pytest.mark.parametrize("term", [TotalVariation("l1"), TotalVariation("l2"), PixelNorm(), Smoothness()])
def test_pixel_terms_are_flat_at_grey_and_measure_in_spans(term: Callable[..., Tensor]) -> None:
    grey = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    loss = term(None, seen(x=grey))
    (slope,) = torch.autograd.grad(loss, grey)
    blur = 1e-7 if isinstance(term, Smoothness) else 0.0  # the weights add up to 1 but for rounding
    assert loss.item() <= blur
    assert slope.abs().max() <= blur
    wide = InputSpec((2, 4, 5), 4, low=-3.0, high=1.0)
    torch.testing.assert_close(term(None, seen(x=4 * IMAGES - 3.0, spec=wide)), term(None, seen(x=IMAGES)))


def test_one_row_of_pixels_has_no_neighbours_below() -> None:
    line = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    assert TotalVariation("l1")(None, seen(x=line)).item() == 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OneHot(cast(Any, "best")), "aim: expected one of target, argmax, found 'best'"),
        (lambda: Disagreement(cast(Any, "k1")), "divergence: expected one of kl, .*, found 'k1'"),
        (lambda: Disagreement("kl", 0.0), "temperature: expected a number > 0, found 0.0"),
        (lambda: Disagreement("js", variant=cast(Any, "swapped")), "variant: expected one of exact, swapped_clamped"),
        (lambda: Disagreement("kl", variant="swapped_clamped"), "variant: expected exact with divergence kl"),
        (lambda: Disagreement("kl", ceiling=0.0), "ceiling: expected a number > 0 or None, found 0.0"),
        (lambda: Disagreement(student_mode=cast(Any, "train")), "student_mode: expected one of eval, batch"),
        (lambda: Smoothness(0.0), "sigma: expected a number > 0, found 0.0"),
        (lambda: TotalVariation(cast(Any, "l3")), "norm: expected one of l1, l2, found 'l3'"),
    ],
)
def test_names_the_wrong_setting(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
