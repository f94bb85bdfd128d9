"""Energy against densities that are known: two pixels, whose moments come from summing over a fine grid."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem, UnsupportedProblem
from dfkd.types import Batch, InputSpec
from samplers.energy import Energy, class_entropy, reflected
from samplers.ingredients import TotalVariation, Views, batchnorm_distance, row_variation

MakeProblem = Callable[..., Problem]

MEANS, STDS = torch.tensor([[0.1, 0.3], [0.6, 0.9]]), torch.tensor([[0.2, 0.15], [0.3, 0.2]])


class TwoBumps(nn.Module):
    """Two pixels -> two logits, the log densities of two normals; its density is their mixture, cut off by the box."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        v = (x.flatten(1)[:, None] - self.spec.low) / self.spec.span
        return -0.5 * (((v - MEANS) / STDS) ** 2).sum(dim=2)


class Flat(nn.Module):
    """Every image is as likely: where it is moved is up to chance and the walls. Its slope is too small to tell, but is
    one: a teacher without is refused."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.k = spec.num_classes

    def forward(self, x: Tensor) -> Tensor:
        return 1e-30 * x.flatten(1).sum(dim=1, keepdim=True).expand(-1, self.k)


def two_pixels(make_problem: MakeProblem, low: float = 0.0, high: float = 1.0) -> Problem:
    return make_problem(shape=(1, 1, 2), num_classes=2, low=low, high=high, teacher=TwoBumps)


def exact(sampler: Energy, problem: Problem, side: int = 400) -> tuple[Tensor, Tensor]:
    """The middles of side^2 cells of the unit box, (side^2, 2), and their probabilities, by the definition of E."""
    edge = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    v = torch.cartesian_prod(edge, edge)
    x = (problem.spec.low + problem.spec.span * v).float()[:, None, None, :]
    logits = problem.teacher(x).logits.double()
    energy = -(logits[:, 0] if sampler.class_conditional else logits.exp().sum(dim=1).log())
    energy = energy + sampler.total_variation * (v[:, 0] - v[:, 1]).abs()
    temperature = sampler.noise**2 / (2.0 * sampler.step)
    return v, (-energy / temperature).softmax(dim=0)


def moments(v: Tensor) -> Tensor:
    """(n, 2) -> (n, 5), the mean of which says mean and covariance."""
    a, b = v.double().unbind(dim=1)
    return torch.stack([a, b, a * a, b * b, a * b], dim=1)


def errors(v: Tensor, cells: Tensor, p: Tensor) -> Tensor:
    """(5,): how many exact standard errors each moment of independent rows v is off."""
    of_cells = moments(cells)
    mean = p @ of_cells
    std = (p @ (of_cells - mean) ** 2).sqrt()
    off: Tensor = (moments(v).mean(dim=0) - mean) / (std / len(v) ** 0.5)
    return off


def drawn(sampler: Energy, problem: Problem, n: int, chains: Tensor | None = None) -> tuple[Batch, Tensor]:
    """One draw, and its rows in the unit box (n, 2)."""
    state = sampler.init(problem, 5)
    if chains is not None:
        state.chains.copy_((problem.spec.low + problem.spec.span * chains)[:, None, None, :])
    batch = sampler.draw(state, problem, n)
    return batch, (batch.x.flatten(1) - problem.spec.low) / problem.spec.span


def at(step: float, temperature: float = 1.0, rows: int = 20_000, **options: Any) -> Energy:
    """Chains that all move together and none of which begins anew."""
    noise = math.sqrt(2.0 * step * temperature)
    return Energy(step=step, noise=noise, **{"steps": 150, "buffer": rows, "batch": rows, "restart": 0.0, **options})


# -- the density ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"total_variation": 3.0}, {"temperature": 0.5}], ids=str)
@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
def test_metropolis_has_the_exact_moments(
    options: dict[str, Any], box: tuple[float, float], make_problem: MakeProblem
) -> None:
    """20 000 chains, independent; a moment is off by over 5 standard errors with P = 6e-7.

    The bumps are cut off by two walls, so their plain moments are far off: mean (0.35, 0.6) for (0.43, 0.62).
    """
    problem, sampler = two_pixels(make_problem, *box), at(0.02, metropolis=True, **options)
    batch, v = drawn(sampler, problem, 20_000)
    assert errors(v, *exact(sampler, problem)).abs().max() < 5.0
    assert 0.5 < batch.info["acceptance"] < 0.95  # steps long enough to need it


def test_each_class_has_its_own_density(make_problem: MakeProblem) -> None:
    problem, sampler = two_pixels(make_problem), at(0.02, metropolis=True, class_conditional=True)
    batch, v = drawn(sampler, problem, 20_000)
    assert batch.target is not None
    first = v[batch.target == 0]
    assert len(first) == 10_000
    assert errors(first, *exact(sampler, problem)).abs().max() < 5.0
    assert errors(v[batch.target == 1], *exact(sampler, problem)).abs().max() > 50.0


def test_long_steps_are_biased_without_metropolis_and_only_without(make_problem: MakeProblem) -> None:
    problem = two_pixels(make_problem)
    for step, least, most in ((0.05, 15.0, 200.0), (0.0005, 0.0, 5.5)):
        plain = at(step, steps=150 if step > 0.01 else 1200, rows=20_000 if step > 0.01 else 2000)
        _, v = drawn(plain, problem, plain.buffer)
        assert least <= errors(v, *exact(plain, problem)).abs().max() < most
    adjusted = at(0.05, metropolis=True)
    _, v = drawn(adjusted, problem, 20_000)
    assert errors(v, *exact(adjusted, problem)).abs().max() < 5.0


@pytest.mark.parametrize("step", [0.02, 0.2, 1.0])
def test_exact_rows_stay_exact(step: float, make_problem: MakeProblem) -> None:
    """Rows that have the density already keep it from the first step, however often the walls throw them back.

    40 000 independent rows; a moment is off by over 5 standard errors with P = 6e-7. Steps of 1.4 boxes are thrown back
    by more than one wall.
    """
    problem, sampler = two_pixels(make_problem), at(step, steps=6, rows=40_000, metropolis=True)
    cells, p = exact(sampler, problem)
    rng = torch.Generator().manual_seed(2)
    chosen = torch.multinomial(p, 40_000, replacement=True, generator=rng)
    begin = cells[chosen].float() + (torch.rand(40_000, 2, generator=rng) - 0.5) / 400
    assert errors(begin, cells, p).abs().max() < 4.0  # the test itself begins well
    batch, v = drawn(sampler, problem, 40_000, begin)
    assert errors(v, cells, p).abs().max() < 5.0
    assert batch.info["acceptance"] > 0.05  # and they have moved


def test_without_slope_every_step_is_accepted_and_uniform_stays_uniform(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 1, 2), num_classes=2, teacher=Flat)
    batch, v = drawn(at(0.1, steps=5, metropolis=True), problem, 20_000)
    torch.testing.assert_close(batch.info["acceptance"], torch.tensor(1.0))
    edges = torch.linspace(0.05, 0.95, 19)
    found = (v[:, :1] < edges).double().mean(dim=0)
    assert (found - edges).abs().max() < 0.02  # P = 2 exp(-2 * 20 000 * 0.02^2) = 2.3e-7 for each


def test_the_temperature_is_that_of_the_published_settings() -> None:
    assert Energy().temperature == pytest.approx(5e-5)
    assert at(0.3, temperature=0.7).temperature == pytest.approx(0.7)


# -- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 2.0)])
def test_a_step_is_the_published_one(box: tuple[float, float], make_problem: MakeProblem) -> None:
    """Theirs, in pixels u of [-1, 1]: u + 1 x the slope of logsumexp in u, and noise of 0.01. Logits are made small
    here, so that no wall is met."""

    class Small(TwoBumps):
        def forward(self, x: Tensor) -> Tensor:
            return 0.02 * super().forward(x)

    problem = make_problem(shape=(1, 1, 2), num_classes=2, low=box[0], high=box[1], teacher=Small)
    sampler = Energy(noise=0.0, steps=3, buffer=50, batch=50, restart=0.0)
    assert (sampler.step, Energy().noise, Energy().steps, Energy().restart, Energy().buffer) == (
        0.25,
        0.005,
        20,
        0.05,
        10_000,
    )
    begin = 0.3 + 0.4 * torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
    state = sampler.init(problem, 5)
    state.chains.copy_((box[0] + problem.spec.span * begin)[:, None, None, :])
    sampler.draw(state, problem, 50)
    u = 2.0 * begin - 1.0
    for _ in range(3):
        u = u.detach().requires_grad_(True)
        x = box[0] + problem.spec.span * (u + 1.0) / 2.0
        (slope,) = torch.autograd.grad(problem.teacher(x[:, None, None, :]).logits.logsumexp(dim=1).sum(), u)
        u = u + slope
    expected = box[0] + problem.spec.span * (u.detach() + 1.0) / 2.0
    assert (expected - state.chains.flatten(1)).abs().max() < 1e-5
    assert (u.detach() - 2.0 * begin + 1.0).abs().mean() > 0.02  # it was a way to go


@pytest.mark.parametrize("span", [1.0, 3.0])
def test_the_noise_is_the_published_one(span: float, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 8, 8), high=span, teacher=Flat)
    sampler = Energy(steps=1, buffer=400, batch=400, restart=0.0)
    state = sampler.init(problem, 5)
    state.chains.fill_(0.5 * span)
    change = (sampler.draw(state, problem, 400).x - 0.5 * span) / span
    # 25 600 normals: the standard deviation is off by over 2.5 % with P = 2e-8
    assert float(change.std()) == pytest.approx(0.005, rel=0.025)
    assert abs(float(change.mean())) < 5.5 * 0.005 / 160


def test_walls_throw_back(make_problem: MakeProblem) -> None:
    spec = make_problem(low=-1.0, high=2.0).spec
    z = torch.tensor([-1.0, 0.5, 2.0, 2.5, -1.5, 4.9, 5.5, -6.0, 8.5])
    y, sign = reflected(z, spec)
    torch.testing.assert_close(y, torch.tensor([-1.0, 0.5, 2.0, 1.5, -0.5, -0.9, -0.5, 0.0, 1.5]))
    assert sign[[1, 3, 4, 5, 6, 7, 8]].tolist() == [1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0]


def test_images_through_the_teacher_are_steps_and_one_label(make_problem: MakeProblem) -> None:
    for metropolis, asked in ((False, 20), (True, 21)):
        problem, sampler = make_problem(), Energy(buffer=16, batch=4, metropolis=metropolis)
        assert "input_grad" in problem.teacher.capabilities
        sampler.draw(sampler.init(problem, 1), problem, 6)
        assert problem.teacher.counts["synthesise"] == {"forward": 6 * asked, "backward": 6 * asked}
        assert problem.teacher.counts["label"] == {"forward": 6, "backward": 0}


def test_what_is_added_to_the_energy_counts_as_in_an_objective(make_problem: MakeProblem) -> None:
    """One step down n times (mean of -logsumexp + 0.7 BatchNorm distance + 0.3 total variation), by hand."""
    problem = make_problem(high=2.0)
    sampler = Energy(
        steps=1, step=0.02, noise=0.0, buffer=32, batch=32, restart=0.0, batchnorm=0.7, total_variation=0.3
    )
    state = sampler.init(problem, 1)
    x = (0.4 + 0.3 * state.chains).requires_grad_(True)
    state.chains.copy_(x.detach())
    sampler.draw(state, problem, 32)
    with problem.teacher.batchnorm_inputs() as layers:
        objective = -problem.teacher(x).logits.exp().sum(dim=1).log().mean() + 0.7 * batchnorm_distance(layers)
    objective = objective + 0.3 * TotalVariation("l1")(None, Views(problem, x, None, []))
    (slope,) = torch.autograd.grad(objective, x)
    step = 0.02 * 2.0**2 * 32 * slope  # in fractions of the box
    assert step.abs().max() > 0.01
    torch.testing.assert_close(state.chains, x.detach() - step, atol=1e-5, rtol=0.0)


def test_what_is_added_to_the_energy_pulls(make_problem: MakeProblem) -> None:
    problem = make_problem()

    def made(**options: Any) -> Tensor:
        sampler = Energy(step=0.01, noise=0.0, buffer=64, batch=64, restart=0.0, **options)
        return sampler.draw(sampler.init(problem, 1), problem, 64).x

    def distance(x: Tensor) -> Tensor:
        with torch.no_grad(), problem.teacher.batchnorm_inputs() as layers:
            problem.teacher(x)
            return batchnorm_distance(layers)

    plain = made()
    assert distance(made(batchnorm=100.0)) < 0.8 * distance(plain)
    assert row_variation(made(total_variation=50.0), 1.0).mean() < 0.7 * row_variation(plain, 1.0).mean()


def test_rows_do_not_slow_each_other_down(make_problem: MakeProblem) -> None:
    """A chain moves alike alone and among others, as its energy is its own."""
    problem = make_problem()
    alone, among = (Energy(noise=0.0, buffer=8, batch=size, restart=0.0) for size in (1, 8))
    one, many = (sampler.draw(sampler.init(problem, 1), problem, 8).x for sampler in (alone, among))
    torch.testing.assert_close(one, many)


# -- the buffer ----------------------------------------------------------------------------------------------------


def test_chains_go_on_where_they_were(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 4, 4))
    sampler = Energy(steps=3, step=0.01, buffer=12, batch=4, restart=0.0)
    state = sampler.init(problem, 1)
    before = state.chains.clone()
    first = sampler.draw(state, problem, 8)
    changed = (state.chains != before).flatten(1).any(dim=1)
    assert int(changed.sum()) == 8
    kept = {tuple(row.flatten().tolist()) for row in state.chains[changed]}
    assert kept == {tuple(row.flatten().tolist()) for row in first.x}
    energies = [float(first.info["energy"]), *(float(sampler.draw(state, problem, 12).info["energy"]) for _ in "abcd")]
    assert energies == sorted(energies, reverse=True)
    kept_so_far = state.chains.clone()
    batch = sampler.draw(state, problem, 30, learn=False)
    assert torch.equal(state.chains, kept_so_far)
    assert float(batch.info["energy"]) < energies[-1]  # it went on from there nevertheless


def test_every_chain_comes_once_before_any_again(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 1, 1), teacher=Flat)
    sampler = Energy(steps=1, noise=0.0, buffer=12, batch=4, restart=0.0)
    state = sampler.init(problem, 1)
    x = sampler.draw(state, problem, 30).x.flatten()
    chains = state.chains.flatten().sort().values
    for part in x.split(12)[:2]:
        torch.testing.assert_close(part.sort().values, chains)
    assert len(x.split(12)[2].unique()) == 6


def test_some_chains_begin_anew(make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(1, 1, 1), teacher=Flat)

    def share(restart: float, n: int) -> float:
        sampler = Energy(steps=1, noise=0.0, buffer=n, batch=n, restart=restart)
        state = sampler.init(problem, 1)
        state.chains.fill_(0.25)
        return float((sampler.draw(state, problem, n).x != 0.25).float().mean())

    assert share(0.0, 100) == 0.0
    assert share(1.0, 100) == 1.0
    # off by over 0.01 with P = 2 exp(-20 000 * 0.01^2 / (2 * 0.05)) = 4e-9 (Bernstein, about)
    assert abs(share(0.05, 20_000) - 0.05) < 0.01


def test_statistics_are_those_of_whole_batches(make_problem: MakeProblem) -> None:
    problem, sampler = make_problem(), Energy(steps=2, batchnorm=1.0, buffer=20, batch=8)
    before = problem.teacher.counts["synthesise"]["forward"]
    one, many = (sampler.draw(sampler.init(problem, 1), problem, n) for n in (1, 8))
    assert problem.teacher.counts["synthesise"]["forward"] - before == 2 * 2 * 8
    torch.testing.assert_close(one.x, many.x[:1])


# -- classes -------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_into_their_class(make_problem: MakeProblem, brightness: Any) -> None:
    problem = make_problem(num_classes=5, teacher=brightness)
    sampler = Energy(steps=60, step=0.01, noise=0.0, buffer=40, batch=7, restart=0.0, class_conditional=True)
    state = sampler.init(problem, 1)
    batch = sampler.draw(state, problem, 40)
    assert batch.target is not None
    assert batch.teacher is not None
    assert batch.target[:15].bincount(minlength=5).tolist() == [3] * 5  # balanced at any place
    assert batch.target.bincount(minlength=5).tolist() == [8] * 5
    assert batch.target.tolist() != sorted(batch.target.tolist())
    right = (problem.teacher(batch.x).logits.argmax(dim=1) == batch.target).float().mean()
    assert right > 0.95
    expected = -batch.teacher.logits[torch.arange(40), batch.target].mean()
    torch.testing.assert_close(batch.info["energy"], expected)
    classes = {tuple(row.flatten().tolist()): int(y) for row, y in zip(batch.x, batch.target, strict=True)}
    for place, row in enumerate(state.chains):  # a chain has the class it had when it was last drawn
        assert classes[tuple(row.flatten().tolist())] == place % 5


def test_the_entropy_is_of_the_histogram() -> None:
    logits = 3.0 * nn.functional.one_hot(torch.tensor([0, 0, 1, 2]), 4).float()
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert float(class_entropy(logits)) == pytest.approx(expected)
    assert float(class_entropy(logits[:1])) == 0.0


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps: expected an integer >= 1, found 0"),
        ({"step": 0.0}, "step: expected a number > 0, found 0.0"),
        ({"noise": -0.1}, "noise: expected a number >= 0"),
        ({"noise": 0.0, "metropolis": True}, "noise: expected a number > 0 with metropolis"),
        ({"buffer": 100}, "buffer: expected an integer >= 256, found 100"),
        ({"restart": 1.5}, r"restart: expected a number in \[0, 1\]"),
        ({"batchnorm": "yes"}, "batchnorm: expected a number >= 0 or 'auto'"),
        ({"batchnorm": "auto", "metropolis": True}, "batchnorm: expected 0 with metropolis, .* found 'auto'"),
        ({"metropolis": 1}, "metropolis: expected true or false, found 1"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_a_wrong_setting(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Energy(**options)


def test_too_few_chains_for_the_classes(make_problem: MakeProblem) -> None:
    said = "energy: buffer: expected at least 10 chains, one for each class, found 8; class_conditional false"
    with pytest.raises(ValueError, match=said) as error:
        Energy(buffer=8, batch=8, class_conditional=True).init(make_problem(), 1)
    assert type(error.value) is ValueError  # the teacher lacks nothing
    Energy(buffer=8, batch=8).init(make_problem(), 1)


def test_names_what_the_teacher_lacks(make_problem: MakeProblem) -> None:
    plain = make_problem(teacher=lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)))
    with pytest.raises(UnsupportedProblem, match="energy: needs a teacher with batchnorm"):
        Energy(batchnorm="auto", buffer=256).init(plain, 1)
    Energy(buffer=256).init(plain, 1)

    class Stepped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :10]

    problem = make_problem()
    problem.teacher = Probe(Stepped(), problem.spec)
    with pytest.raises(UnsupportedProblem, match="energy: needs a teacher with input_grad"):
        Energy(buffer=256).init(problem, 1)
