"""Slopes in the input against finite differences and closed forms, their identities, and models that have none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dfkd
from dfkd.losses import (
    ClassGradient,
    Jacobian,
    all_directions,
    class_gradient_distance,
    combine,
    jacobian_distance,
)
from dfkd.losses.derivatives import Asked
from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import initialised
from dfkd.types import Batch, InputSpec, Outputs

N, K, SHAPE = 4, 3, (1, 2, 3)
PIXELS = 6
SPEC = InputSpec(SHAPE, K)
GENERATOR = torch.Generator().manual_seed(11)
X = torch.rand(N, *SHAPE, generator=GENERATOR)
DIRECTIONS = torch.randn(5, N, K, generator=GENERATOR)
CLASSES = torch.tensor([2, 0, 0, 1])


def smooth(seed: int) -> nn.Sequential:
    with initialised(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 7), nn.Tanh(), nn.Linear(7, K))


def linear(seed: int) -> nn.Sequential:
    with initialised(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, K))


def layer(net: nn.Module, place: int) -> nn.Linear:
    found = net.get_submodule(str(place))
    assert isinstance(found, nn.Linear)
    return found


def normalised(seed: int, act: nn.Module | None = None) -> nn.Sequential:
    """A BatchNorm net whose stored statistics are not those of a batch."""
    with initialised(seed):
        conv, last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * PIXELS, K)
        norm = nn.BatchNorm2d(4)
        norm.running_mean = torch.randn(4)
        norm.running_var = 0.5 + torch.rand(4)
        return nn.Sequential(conv, norm, nn.ReLU(inplace=True) if act is None else act, nn.Flatten(), last)


def slow_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    """(n, k, pixels) by central differences in double, one pixel of one row at a time."""
    module, x, step = module.double(), x.double(), 1e-5
    jacobian = torch.zeros(len(x), K, PIXELS, dtype=torch.float64)
    with torch.no_grad():
        for row in range(len(x)):
            for pixel in range(PIXELS):
                nudge = torch.zeros(PIXELS, dtype=torch.float64)
                nudge[pixel] = step
                up, down = (x[row] + sign * nudge.view(SHAPE) for sign in (1.0, -1.0))
                jacobian[row, :, pixel] = (module(up[None]) - module(down[None]))[0] / (2.0 * step)
    module.float()
    return jacobian


def asked(student: nn.Module, teacher: nn.Module, x: Tensor = X) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().clone().requires_grad_(True)
    return student(x), teacher(x), x


def gap() -> Tensor:
    """(n, k, pixels): the difference of the two smooth nets' Jacobians."""
    return slow_jacobian(smooth(1), X) - slow_jacobian(smooth(2), X)


# -- values ----------------------------------------------------------------------------------------------------------


def test_products_equal_finite_differences() -> None:
    products = torch.einsum("dnk,nkp->dnp", DIRECTIONS.double(), gap())
    slow = products.square().sum(dim=2).mean(dim=0)
    torch.testing.assert_close(
        jacobian_distance(*asked(smooth(1), smooth(2)), DIRECTIONS).double(), slow, rtol=1e-4, atol=1e-6
    )


def test_all_directions_give_the_frobenius_norm_and_so_do_random_ones_on_average() -> None:
    exact = gap().square().sum(dim=(1, 2)).float()
    ours, theirs, x = asked(smooth(1), smooth(2))
    torch.testing.assert_close(jacobian_distance(ours, theirs, x, all_directions(ours)), exact, rtol=1e-4, atol=1e-6)
    # v^T M v, M = D D^T, has variance 2 tr(M^2) <= 2 tr(M)^2: 6 standard errors, failing once in 10^8 runs or so
    d = 2000
    drawn = jacobian_distance(ours, theirs, x, torch.randn(d, N, K, generator=torch.Generator().manual_seed(3)))
    assert ((drawn - exact).abs() <= 6.0 * exact * (2.0 / d) ** 0.5).all()


@pytest.mark.parametrize("soft", [False, True])
def test_normalised_slopes_equal_finite_differences(soft: bool) -> None:
    weights = torch.softmax(DIRECTIONS[0], dim=1) if soft else torch.eye(K)[CLASSES]
    units = []
    for seed in (1, 2):
        slopes = torch.einsum("nk,nkp->np", weights.double(), slow_jacobian(smooth(seed), X))
        units.append(slopes / slopes.norm(dim=1, keepdim=True))
    slow = (units[0] - units[1]).square().sum(dim=1).float()
    found = class_gradient_distance(*asked(smooth(1), smooth(2)), weights if soft else CLASSES)
    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-5)


def test_linear_nets_in_closed_form() -> None:
    ours, theirs = linear(1), linear(2)
    w, u = (layer(net, 1).weight.detach() for net in (ours, theirs))
    found = jacobian_distance(*asked(ours, theirs), DIRECTIONS)
    torch.testing.assert_close(found.detach(), (DIRECTIONS @ (w - u)).square().sum(dim=2).mean(dim=0))
    cosine = torch.nn.functional.cosine_similarity(w, u)
    found = class_gradient_distance(*asked(ours, theirs), CLASSES)
    torch.testing.assert_close(found.detach(), (2.0 - 2.0 * cosine)[CLASSES])


def test_zero_for_equal_models_whatever_their_biases() -> None:
    ours, theirs = smooth(1), smooth(1)
    with torch.no_grad():
        layer(theirs, 3).bias.add_(5.0)
    assert jacobian_distance(*asked(ours, theirs), DIRECTIONS).abs().max() == 0.0
    assert class_gradient_distance(*asked(ours, theirs), CLASSES).abs().max() == 0.0


def test_normalised_slopes_know_no_scale_and_reach_from_0_to_4() -> None:
    values = class_gradient_distance(*asked(smooth(1), smooth(2)), CLASSES)
    ours, theirs, x = asked(smooth(1), smooth(2))
    torch.testing.assert_close(class_gradient_distance(1e-7 * ours, 1e22 * theirs, x, CLASSES), values)
    torch.testing.assert_close(class_gradient_distance(-ours, ours, x, CLASSES), torch.full((N,), 4.0))


def test_a_slope_of_zero_has_no_direction_and_no_gradient() -> None:
    ours, theirs = linear(1), linear(2)
    with torch.no_grad():
        layer(ours, 1).weight[0].zero_()
    values = class_gradient_distance(*asked(ours, theirs), CLASSES)
    torch.testing.assert_close(values[1:3].detach(), torch.ones(2))  # of class 0: |0 - a unit vector|^2
    (slope,) = torch.autograd.grad(values.sum(), layer(ours, 1).weight)
    assert slope.isfinite().all()
    assert slope[0].abs().max() == 0.0
    assert slope[1].abs().max() > 1e-3


@pytest.mark.parametrize("loss", [Jacobian(), ClassGradient(), ClassGradient(of="label")])
def test_rows_change_places_with_their_values_and_stand_alone(loss: Jacobian | ClassGradient) -> None:
    def values(rows: Tensor) -> Tensor:
        ours, theirs, x = asked(smooth(1), smooth(2), X[rows])
        return loss(Outputs(ours), Outputs(theirs), Batch(x, y=CLASSES[rows]))

    every, order = values(torch.arange(N)), torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(values(order), every[order])
    torch.testing.assert_close(values(order[:1]), every[order[:1]])


def test_called_by_itself_it_is_exact_and_takes_the_teachers_class() -> None:
    ours, theirs, x = asked(smooth(1), smooth(2))
    answers = Outputs(ours), Outputs(theirs)
    exact = jacobian_distance(ours, theirs, x, all_directions(ours))
    assert torch.equal(Jacobian(directions=7)(*answers, Batch(x)), exact)
    top, labelled = theirs.argmax(dim=1), CLASSES
    assert not torch.equal(top, labelled)
    for loss, classes in ((ClassGradient(), top), (ClassGradient(of="label"), labelled)):
        found = loss(*answers, Batch(x, y=labelled))
        assert torch.equal(found, class_gradient_distance(ours, theirs, x, classes))
    with pytest.raises(ValueError, match="class_gradient: needs ground-truth labels"):
        ClassGradient(of="label")(*answers, Batch(x))


# -- gradients in the student's weights --------------------------------------------------------------------------------


def functional(net: nn.Sequential) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The net as a function of (x, its weights), in double."""
    names = [name for name, _ in net.named_parameters()]
    weights = tuple(p.detach().double().requires_grad_(True) for p in net.parameters())
    buffers = {k: v.double() if v.is_floating_point() else v for k, v in net.named_buffers()}

    def ask(x: Tensor, *given: Tensor) -> Tensor:
        kept = {k: v.clone() for k, v in buffers.items()}
        answer: Tensor = torch.func.functional_call(net, dict(zip(names, given, strict=True)) | kept, (x,))
        return answer

    return ask, weights


@pytest.mark.parametrize("make", [smooth, normalised])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_by_finite_differences(make: Callable[[int], nn.Sequential], training: bool) -> None:
    ask, weights = functional(make(1).train(training))
    teacher = smooth(2).double()
    x = X.double().requires_grad_(True)

    def values(*given: Tensor) -> tuple[Tensor, Tensor]:
        ours, theirs = ask(x, *given), teacher(x)
        return jacobian_distance(ours, theirs, x, DIRECTIONS[:2].double()), class_gradient_distance(
            ours, theirs, x, CLASSES
        )

    assert torch.autograd.gradcheck(values, weights)


def test_the_gradient_on_a_linear_net_in_closed_form() -> None:
    ours, theirs = linear(1), linear(2)
    w, u = (layer(net, 1).weight for net in (ours, theirs))
    v = DIRECTIONS[0]
    jacobian_distance(*asked(ours, theirs), v[None]).sum().backward()  # backward: into the teacher too, if it could
    assert w.grad is not None
    torch.testing.assert_close(w.grad, 2.0 * v.T @ v @ (w - u).detach())
    assert u.grad is None


def test_without_recording_it_is_a_metric() -> None:
    ours, theirs, x = asked(smooth(1), smooth(2))
    learnt = jacobian_distance(ours, theirs, x, DIRECTIONS)
    with torch.no_grad():
        measured = jacobian_distance(ours, theirs, x, DIRECTIONS)
    assert learnt.requires_grad
    assert not measured.requires_grad
    assert torch.equal(measured, learnt)


# -- within a run ------------------------------------------------------------------------------------------------------


def problem(student: nn.Module, teacher: nn.Module | None = None) -> Problem:
    probes = Probe(teacher or smooth(2), SPEC, name="teacher"), Probe(student, SPEC, name="student")
    return Problem(*probes, SPEC, torch.device("cpu"))


def called(
    loss: Jacobian | ClassGradient, p: Problem, seed: int = 0, x: Tensor = X
) -> tuple[Asked, Callable[[], Tensor]]:
    """The loss as a run has it, and what it gives for a fresh batch, the student asked as it stands."""
    module = loss.init(p, seed)
    assert isinstance(module, Asked)

    def call() -> Tensor:
        leaf = x.detach().clone().requires_grad_(True)
        values: Tensor = module(p.student.learn(leaf), p.teacher(leaf), Batch(leaf))
        return values.detach()

    return module, call


def test_every_step_and_row_has_its_own_directions_from_the_seed() -> None:
    same = X[:1].expand(N, *SHAPE)  # so that rows differ by their directions alone
    before = torch.get_rng_state()
    (_, first), (_, again), (_, other) = (called(Jacobian(), problem(smooth(1)), seed, same) for seed in (1, 1, 2))
    steps = torch.stack([first() for _ in range(3)])
    assert torch.equal(torch.stack([again() for _ in range(3)]), steps)
    assert steps.flatten().unique().numel() == 3 * N
    assert not torch.equal(other(), steps[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_goes_on_where_it_was_saved() -> None:
    module, call = called(Jacobian(), problem(smooth(1)))
    call()
    saved = module.state_dict()
    expected = [call() for _ in range(2)]
    resumed, again = called(Jacobian(), problem(smooth(1)), seed=5)
    resumed.load_state_dict(saved)
    assert all(torch.equal(again(), values) for values in expected)


def test_no_number_of_directions_is_all_of_them() -> None:
    _, call = called(Jacobian(directions=None), problem(smooth(1)))
    ours, theirs, x = asked(smooth(1), smooth(2))
    assert torch.equal(call(), jacobian_distance(ours, theirs, x, all_directions(ours)).detach())


@pytest.mark.parametrize("make", [lambda mode: Jacobian(None, mode), lambda mode: ClassGradient(student_mode=mode)])
def test_the_student_is_asked_as_it_will_be_used_or_as_it_learns(make: Callable[[str], Any]) -> None:
    def expected(training: bool) -> Tensor:
        student = normalised(1).train()
        student(X)  # a step moves the stored statistics first
        ours, theirs, x = asked(student.train(training), smooth(2))
        values: Tensor = make("train")(Outputs(ours), Outputs(theirs), Batch(x))
        return values.detach()

    for mode, training in (("eval", False), ("train", True)):
        p = problem(normalised(1).train())
        _, call = called(make(mode), p)
        torch.testing.assert_close(call(), expected(training))
        assert all(part.training for part in p.student.module.modules())
        assert p.student.module[1].num_batches_tracked == 1  # type: ignore[index]  # a Sequential; it learnt once
    assert not torch.allclose(expected(True), expected(False), rtol=0.05)


def test_the_teacher_counts_an_image_for_every_slope() -> None:
    objective = combine({"jacobian": (1.0, Jacobian(directions=3)), "class_gradient": (1.0, ClassGradient())})
    uniform = find("sampler", "uniform", SAMPLERS)()
    done = dfkd.distill(
        smooth(2),
        normalised(1),
        uniform,
        spec=SPEC,
        objective=objective,
        budget=dfkd.Budget(batch=8, steps=2),
        device="cpu",
    )
    assert done.training.counts["label"] == {"forward": 16, "backward": 16 * 4}
    assert done.training.counts["synthesise"] == {"forward": 0, "backward": 0}


def test_directions_of_slopes_make_a_linear_students_weights_point_as_the_teachers() -> None:
    teacher, student = linear(2), linear(1)
    uniform = find("sampler", "uniform", SAMPLERS)()
    done = dfkd.distill(
        teacher,
        student,
        uniform,
        spec=SPEC,
        objective=combine({"class_gradient": (1.0, ClassGradient())}),
        budget=dfkd.Budget(batch=16, steps=150),
        optimiser=dfkd.Optimiser(learning_rate=0.1, weight_decay=0.0),
        device="cpu",
    )
    x = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(5))
    seen = teacher(x).argmax(dim=1).bincount(minlength=K) >= 10
    assert seen.sum() >= 2
    for net, low, high in ((student, -1.0, 0.9), (done.student, 0.999, 1.001)):
        cosine = nn.functional.cosine_similarity(layer(net, 1).weight, layer(teacher, 1).weight)[seen]
        assert ((cosine > low) & (cosine < high)).all()


def test_slopes_alone_make_a_linear_student_equal_to_a_linear_teacher_but_for_its_bias() -> None:
    teacher, student = linear(2), linear(1)
    uniform = find("sampler", "uniform", SAMPLERS)()
    done = dfkd.distill(
        teacher,
        student,
        uniform,
        spec=SPEC,
        objective=combine({"jacobian": (1.0, Jacobian())}),
        budget=dfkd.Budget(batch=16, steps=150),
        optimiser=dfkd.Optimiser(learning_rate=0.1, weight_decay=0.0),
        device="cpu",
    )
    learnt, first, theirs = layer(done.student, 1), layer(student, 1), layer(teacher, 1)
    assert (first.weight - theirs.weight).abs().max() > 0.1
    torch.testing.assert_close(learnt.weight, theirs.weight, atol=1e-3, rtol=0.0)
    assert torch.equal(learnt.bias, first.bias)  # of which slopes know nothing


# -- bad input -------------------------------------------------------------------------------------------------------


class Thresholds(nn.Module):
    """Whole pixels only: no slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(PIXELS, K)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last((x > 0.5).float().flatten(1))
        return logits


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return 2.0 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        return 2.0 * grads[0]


class OnceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = smooth(1), nn.Linear(K, K)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(Once.apply(self.first(x)))
        return logits


@pytest.mark.parametrize("loss", [Jacobian(), ClassGradient()])
def test_a_model_without_slopes_is_named_with_what_does_without(loss: Jacobian | ClassGradient) -> None:
    with pytest.raises(UnsupportedProblem, match=f"{loss.name}: needs a teacher with input_grad; .*; kl, logit_mse"):
        loss.init(problem(smooth(1), Thresholds()), 0)
    with pytest.raises(
        UnsupportedProblem, match=f"{loss.name}: needs a student that can be .* none of them are; kl, log"
    ):
        loss.init(problem(Thresholds()), 0)
    with pytest.raises(UnsupportedProblem, match=r"in x and then in its weights: .*once_differentiable; kl, logit_mse"):
        loss.init(problem(OnceOnly()), 0)


def test_the_run_says_it_too() -> None:
    uniform = find("sampler", "uniform", SAMPLERS)()
    objective, budget = combine({"mine": (1.0, Jacobian())}), dfkd.Budget(batch=4, steps=1)
    with pytest.raises(UnsupportedProblem, match=r"jacobian: needs a teacher with input_grad; .*; kl, logit_mse"):
        dfkd.distill(Thresholds(), smooth(1), uniform, spec=SPEC, objective=objective, budget=budget, device="cpu")


def test_finding_out_changes_and_counts_nothing() -> None:
    student = normalised(1).train()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    p = problem(student)
    Jacobian().init(p, 0)
    assert p.teacher.images == p.student.images == 0
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(q.grad is None for q in student.parameters())


def test_answers_that_do_not_come_from_x_are_named() -> None:
    ours, theirs, x = asked(smooth(1), smooth(2))
    with pytest.raises(ValueError, match="x: expected logits that were computed from an x with requires_grad"):
        jacobian_distance(ours, theirs.detach(), x, DIRECTIONS)
    with pytest.raises(ValueError, match="x: expected logits that were computed from this x"):
        class_gradient_distance(ours, theirs, x.detach().clone().requires_grad_(True), CLASSES)
    with pytest.raises(ValueError, match=r"teacher_logits: expected shape \(4, 3\), found \(4, 2\)"):
        jacobian_distance(ours, theirs[:, :2], x, DIRECTIONS)
    with pytest.raises(ValueError, match=r"classes: expected shape \(4, 3\), found \(4, 2\)"):
        class_gradient_distance(ours, theirs, x, torch.zeros(4, 2))


@pytest.mark.parametrize("directions", [0, -1, 1.5, True])
def test_refuses_a_number_of_directions_that_is_none(directions: Any) -> None:
    with pytest.raises(ValueError, match="directions: expected an integer >= 1 or null, found"):
        Jacobian(directions)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jacobian(student_mode="batch"), "student_mode: expected one of eval, train, found 'batch'"),  # type: ignore[arg-type]  # refused
        (lambda: ClassGradient(student_mode="batch"), "student_mode: expected one of eval, train"),  # type: ignore[arg-type]  # refused
        (lambda: ClassGradient(of="student"), "of: expected one of teacher, label, found 'student'"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
