"""The named relations against their papers' formulas in Python, and how they are tapped, refused and used."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd import config, models
from dfkd.losses import CC, CKA, FKD, KL, PKT, SP, Relation, cc, cka, combine, fkd, pkt, rkd_angle, rkd_distance, sp
from dfkd.problem import PENULTIMATE, Probe, Problem, UnsupportedProblem
from dfkd.rng import initialised
from dfkd.types import Batch, InputSpec, Outputs

N = 6
GENERATOR = torch.Generator().manual_seed(12)
STUDENT = torch.randn(N, 3, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randn(N, 4, generator=GENERATOR, dtype=torch.float64) + 0.3
OURS, THEIRS = STUDENT.tolist(), TEACHER.tolist()
EMPTY = Batch(torch.zeros(N, 1, 1, 1))
SPEC = InputSpec((1, 8, 8), 4)
NAMES = ["sp", "pkt", "cc", "cka", "fkd", "rkd_distance", "rkd_angle", "relation"]
PLAIN = {"sp": sp, "pkt": pkt, "cc": cc, "cka": cka, "rkd_distance": rkd_distance, "rkd_angle": rkd_angle}
Table = list[list[float]]
ROWS = range(N)


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def cosines(f: Table) -> Table:
    return [[dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) for b in f] for a in f]


def slow_sp(f: Table) -> Table:
    """Rows of the Gram matrix over their norms."""
    gram = [[dot(a, b) for b in f] for a in f]
    return [[value / math.sqrt(dot(row, row)) for value in row] for row in gram]


def slow_cc(f: Table, gamma: float) -> Table:
    series = [(2.0 * gamma) ** p / math.factorial(p) for p in range(3)]
    return [[math.exp(-2.0 * gamma) * sum(c * x**p for p, c in enumerate(series)) for x in row] for row in cosines(f)]


def mean_square(a: Table, b: Table) -> float:
    return sum((a[i][j] - b[i][j]) ** 2 for i in ROWS for j in ROWS) / N**2


def slow_pkt(f: Table) -> Table:
    likeness = [[0.5 * (1.0 + x) for x in row] for row in cosines(f)]
    return [[x / sum(row) for x in row] for row in likeness]


def slow_cka() -> float:
    """1 - <HKH, HLH> / (|HKH| |HLH|), with H written out."""
    h = [[(i == j) - 1.0 / N for j in ROWS] for i in ROWS]

    def centred(f: Table) -> list[float]:
        k = [[dot(a, b) for b in f] for a in f]
        hk = [[sum(h[i][m] * k[m][j] for m in ROWS) for j in ROWS] for i in ROWS]
        return [sum(hk[i][m] * h[m][j] for m in ROWS) for i in ROWS for j in ROWS]

    a, b = centred(OURS), centred(THEIRS)
    return 1.0 - dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def slow_fkd(regularise: float) -> float:
    a, b = cosines(OURS), cosines(THEIRS)
    pairs = sum((a[i][j] - b[i][j]) ** 2 for i in ROWS for j in ROWS if i != j) / (N * (N - 1))
    return pairs + regularise * sum(dot(h, h) for h in OURS) / N


def test_equal_their_definitions() -> None:
    assert float(sp(STUDENT, TEACHER)) == pytest.approx(mean_square(slow_sp(OURS), slow_sp(THEIRS)))
    p, q = slow_pkt(THEIRS), slow_pkt(OURS)
    slow = sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i in ROWS for j in ROWS) / N
    assert float(pkt(STUDENT, TEACHER)) == pytest.approx(slow)
    for gamma in (0.4, 1.5):
        slow = mean_square(slow_cc(OURS, gamma), slow_cc(THEIRS, gamma))
        assert float(cc(STUDENT, TEACHER, gamma)) == pytest.approx(slow)
    assert float(cka(STUDENT, TEACHER)) == pytest.approx(slow_cka())
    assert 0.05 < slow_cka() < 1.0
    for regularise in (0.0, 0.3):
        assert float(fkd(STUDENT, TEACHER, regularise)) == pytest.approx(slow_fkd(regularise))


def test_the_cut_series_is_near_the_gaussian_of_unit_features() -> None:
    unit = STUDENT / STUDENT.norm(dim=1, keepdim=True)
    gaussian = torch.exp(-0.1 * torch.cdist(unit, unit).square())
    assert (torch.tensor(slow_cc(OURS, 0.1), dtype=torch.float64) - gaussian).abs().max() < 0.002


def test_a_row_beside_itself_does_not_count_in_feature_kernels() -> None:
    """Two rows: the one pair that counts, twice; were the diagonal counted the mean would be half of it."""
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(fkd(student, teacher)) == pytest.approx(0.5)
    assert fkd(7.0 * student, teacher, 0.1) == pytest.approx(0.5 + 0.1 * (49.0 + 98.0) / 2.0)


def test_the_regulariser_sees_the_scale_of_the_students_features_only() -> None:
    student = STUDENT.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(fkd(student, 5.0 * TEACHER, 0.2) - fkd(student, TEACHER), student)
    torch.testing.assert_close(slope, 0.2 * 2.0 * STUDENT / N)


def test_alignment_does_not_see_rotations_shifts_nor_scale_and_is_1_for_unrelated_features() -> None:
    turned, _ = torch.linalg.qr(TEACHER.T @ TEACHER)
    assert cka(TEACHER, -3.0 * TEACHER @ turned + 2.0) < 1e-12
    squares = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert float(cka(squares, squares.roll(2, dims=0))) == pytest.approx(1.0)


@pytest.mark.parametrize("function", [sp, pkt, cc, cka, fkd, rkd_distance, rkd_angle])
def test_the_gradient_is_that_of_finite_differences_and_reaches_every_row(function: Any) -> None:
    student = STUDENT.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda f: function(f, TEACHER), (student,))
    (slope,) = torch.autograd.grad(function(student, TEACHER), student)
    assert slope.abs().amax(dim=1).min() > 1e-6
    near = (STUDENT - 0.05 * slope / slope.norm()).detach()
    assert function(near, TEACHER) < function(STUDENT, TEACHER)


@pytest.mark.parametrize("function", [sp, pkt, cc, cka, fkd, rkd_distance, rkd_angle])
def test_descent_finds_features_with_the_teachers_relation(function: Any) -> None:
    student = torch.randn(N, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_(True)
    start = float(function(student.detach(), TEACHER))
    optimiser = torch.optim.Adam([student], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        function(student, TEACHER).backward()
        optimiser.step()
    assert float(function(student.detach(), TEACHER)) < 0.01 * start


# -- as losses ---------------------------------------------------------------------------------------------------------


def loss_of(name: str, **options: Any) -> Any:
    return config.objective({name: options}).terms[name][1]


def answered(features: Tensor, path: str = PENULTIMATE) -> Outputs:
    return Outputs(torch.zeros(len(features), 2), {path: features})


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_function_on_every_row(name: str) -> None:
    plain = PLAIN.get(name, fkd)
    options = {"regularise": 0.0} if name == "fkd" else {}
    values = loss_of(name, **options)(answered(STUDENT), answered(TEACHER), EMPTY)
    torch.testing.assert_close(values, plain(STUDENT, TEACHER).expand(N))


def test_options_reach_the_function() -> None:
    both = answered(STUDENT), answered(TEACHER)
    assert CC(gamma=1.5)(*both, EMPTY)[0] == cc(STUDENT, TEACHER, 1.5)
    assert FKD(regularise=0.3)(*both, EMPTY)[0] == fkd(STUDENT, TEACHER, 0.3)
    assert loss_of("rkd_angle", rows=4)(*both, EMPTY)[0] == rkd_angle(STUDENT, TEACHER, rows=4)
    pkt_by_parts = Relation(kernel="cosine", normalise="row_sum", diagonal="keep", distance="kl")
    assert pkt_by_parts(*both, EMPTY)[0] == pkt(STUDENT, TEACHER)


def test_the_published_start_is_300_and_a_hundredth() -> None:
    objective = combine({"fkd": (300.0, FKD())})
    total = objective(answered(STUDENT), answered(TEACHER), EMPTY).total
    slow = 300.0 * slow_fkd(0.0) + 0.01 * sum(dot(h, h) for h in OURS) / N
    assert float(total) == pytest.approx(slow, rel=1e-6)


def test_of_an_ensembles_members_the_mean_correlation_counts() -> None:
    second = TEACHER.flip(0)
    teacher = Outputs(torch.zeros(N, 2), {"members.0": TEACHER, "members.1": second})
    loss = FKD(teacher=("members.0", "members.1"), regularise=0.0)
    assert loss.needs == {"student": (PENULTIMATE,), "teacher": ("members.0", "members.1")}
    a, b, c = cosines(OURS), cosines(THEIRS), cosines(second.tolist())
    pairs = list(itertools.permutations(ROWS, 2))
    slow = sum((a[i][j] - 0.5 * (b[i][j] + c[i][j])) ** 2 for i, j in pairs) / len(pairs)
    assert float(loss(answered(STUDENT), teacher, EMPTY)[0]) == pytest.approx(slow)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_weigh_differently_are_refused(name: str) -> None:
    objective = combine({"it": (1.0, loss_of(name))})
    weighted = Batch(EMPTY.x, weight=torch.arange(1.0, N + 1.0))
    with pytest.raises(ValueError, match="it: needs equal row weights"):
        objective(answered(STUDENT), answered(TEACHER), weighted)


def problem() -> Problem:
    with initialised(3):
        probes = [
            Probe(models.build("digits_cnn", SPEC, width=w), SPEC, name=n) for w, n in ((3, "teacher"), (2, "student"))
        ]
    return Problem(probes[0], probes[1], SPEC, torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_features_of_other_widths_are_tapped_from_both_models(name: str) -> None:
    p, x = problem(), torch.rand(N, *SPEC.shape, generator=torch.Generator().manual_seed(1))
    objective = config.objective({name: {}})
    assert len(objective.init(p, 0)) == 0
    with p.student.taps(*objective.needs["student"]):
        student = p.student(x)
    teacher = p.label(Batch(x), objective.needs["teacher"])
    assert (student.features[PENULTIMATE].shape, teacher.features[PENULTIMATE].shape) == ((N, 4), (N, 6))
    evaluated = objective(student, teacher, Batch(x))
    evaluated.total.backward()
    assert evaluated.total > 0.0
    convolution = p.student.module.get_submodule("conv1")
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.weight.grad is not None
    assert convolution.weight.grad.abs().max() > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_tap_that_is_not_there_is_named_before_the_run(name: str) -> None:
    with pytest.raises(ValueError, match="module path of the student: unknown 'conv9'; the nearest is 'conv"):
        loss_of(name, student="conv9").init(problem(), 0)
    with pytest.raises(ValueError, match="module path of the teacher: unknown 'liner'; the nearest is 'linear'"):
        loss_of(name, teacher=["conv1", "liner"]).init(problem(), 0)
    mean = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    p = problem()
    with pytest.raises(UnsupportedProblem, match="tap 'penultimate': needs a student with penultimate"):
        loss_of(name).init(Problem(p.teacher, Probe(mean, SPEC, name="student"), SPEC, p.device), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": ""}, "student: expected a module path, found ''"),
        ({"teacher": ""}, "teacher: expected a module path or several, found ''"),
        ({"teacher": []}, r"teacher: expected a module path or several, found \(\)"),
        ({"teacher": ["a", ""]}, "teacher: expected a module path or several"),
        ({"teacher": 3}, "objective.sp.teacher: expected text or a list, each text, found 3"),
    ],
)
def test_refuses_taps_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of("sp", **options)


def test_refuses_other_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="gamma: expected a number > 0"):
        CC(gamma=-1.0)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="regularise: expected a number >= 0"):
            FKD(regularise=wrong)
    with pytest.raises(ValueError, match="rows: expected an integer >= 3, found 2"):
        loss_of("rkd_angle", rows=2)
    with pytest.raises(ValueError, match="distance kl, found 'correlation'"):
        Relation(distance="kl")


def test_names_features_that_nobody_tapped() -> None:
    for loss in (SP(), PKT(), CKA()):
        with pytest.raises(ValueError, match=f"{loss.name}: needs the teacher's features at 'penultimate'"):
            loss(answered(STUDENT), answered(TEACHER, "other"), EMPTY)


def test_stands_beside_a_term_on_responses() -> None:
    student = Outputs(STUDENT[:, :2].clone().requires_grad_(True), {PENULTIMATE: STUDENT})
    teacher = Outputs(TEACHER[:, :2], {PENULTIMATE: TEACHER})
    evaluated = combine({"kl": (1.0, KL(temperature=4.0)), "fkd": (300.0, FKD())})(student, teacher, EMPTY)
    assert set(evaluated.terms) == {"kl", "fkd"}
    assert evaluated.rows.std() > 0.0  # KL's part still differs by row
