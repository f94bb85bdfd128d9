"""The generator that learns beside the student: when it learns, what is shown of it, and what is never set back."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor, nn

from dfkd.problem import Probe, Problem
from dfkd.rng import Stream
from samplers.ingredients import (
    Balance,
    Disagreement,
    Objective,
    OneHot,
    OnlineGenerator,
    TrunkNetwork,
    Views,
    descend,
    enough_rows,
    sampling,
)
from samplers.state import State

MakeProblem = Callable[..., Problem]

SMALL = OnlineGenerator(Objective(((1.0, OneHot("argmax")),)), TrunkNetwork(6, "small"), batch=6, student_steps=3)


def net(module: Any) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def latents_of(state: State, n: int) -> Tensor:
    """The first (n, 6) numbers of the next draw."""
    stream = Stream(state.stream.seed)
    stream.step = state.stream.step
    return torch.randn(n, 6, generator=stream.advance())


@dataclass(frozen=True)
class Spy:
    """A term that learns: it keeps what it was called with."""

    calls: list[Any] = field(default_factory=list)
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> None:
        del problem, seed

    def __call__(self, state: None, views: Views) -> Tensor:
        del state
        self.calls.append("judged")
        return (views.x**2).mean()

    def after_step(self, state: None) -> None:
        del state
        self.calls.append("step")

    def end_round(self, state: None, views: Views) -> None:
        del state
        self.calls.append(views.images)


# -- the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generator_steps", "student_steps"), [(1, 1), (1, 3), (2, 2), (0, 1)])
def test_learns_at_the_ratio_asked_and_at_no_draw_that_is_not_learnt_from(
    make_problem: MakeProblem, generator_steps: int, student_steps: int
) -> None:
    online = replace(SMALL, generator_steps=generator_steps, student_steps=student_steps)
    problem = make_problem()
    state = online.init(problem, 0, "test")
    for draw in range(7):
        before, asked = net(state.generator), problem.teacher.counts["synthesise"]["forward"]
        online.draw(state, problem, 2, learn=False)
        assert same(before, net(state.generator))
        batch = online.draw(state, problem, 2)
        due = draw % student_steps == 0 and generator_steps > 0
        assert same(before, net(state.generator)) == (not due)
        assert ("generator_loss" in batch.info) == due
        assert problem.teacher.counts["synthesise"]["forward"] - asked == 6 * generator_steps * due


def test_nothing_is_ever_set_back(make_problem: MakeProblem) -> None:
    """A round begins at the weights and moments that the one before ended with."""
    problem, online = make_problem(), replace(SMALL, student_steps=1, generator_steps=2, learning_rate=1e-3)
    state = online.init(problem, 0, "test")
    for done in range(1, 4):
        before = [p.detach().clone() for p in state.generator.parameters()]
        online.draw(state, problem, 2)
        steps = {int(entry["step"]) for entry in state.optimiser.state.values()}
        assert steps == {2 * done}
        # two steps of Adam go no further than a few times their rate: none was taken from elsewhere
        gone = max(
            (a - b.detach()).abs().max().item() for a, b in zip(before, state.generator.parameters(), strict=True)
        )
        assert 0.0 < gone < 5e-3


def test_terms_that_learn_are_told_of_each_step_and_of_the_rounds_end(make_problem: MakeProblem) -> None:
    spy = Spy()
    online = replace(SMALL, objective=Objective(((1.0, spy),)), generator_steps=2, student_steps=2)
    problem = make_problem()
    state = online.init(problem, 0, "test")
    for _ in range(3):
        online.draw(state, problem, 2)
    told = ["judged", "step", "judged", "step", Tensor]
    assert [call if isinstance(call, str) else type(call) for call in spy.calls] == 2 * told
    assert spy.calls[4].shape == (6, 1, 8, 8)
    assert not spy.calls[4].requires_grad


@pytest.mark.parametrize(
    ("rate", "milestones", "factors"),
    [
        ("constant", (), {0.0: 1.0, 0.99: 1.0}),
        ("cosine", (), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0, 1 / 3: 0.75}),
        ("steps", (0.2, 0.4), {0.0: 1.0, 0.199: 1.0, 0.2: 0.1, 0.39: 0.1, 0.4: 0.01, 1.0: 0.01}),
    ],
)
def test_the_rate_follows_the_run(
    make_problem: MakeProblem, rate: Any, milestones: tuple[float, ...], factors: dict[float, float]
) -> None:
    """Adam's first step moves what has a gradient by the learning rate itself."""
    online = replace(SMALL, rate=rate, milestones=milestones, learning_rate=1e-2)
    for progress, factor in factors.items():
        problem = make_problem()
        problem.progress = progress
        state = online.init(problem, 0, "test")
        before = state.generator.head.weight.detach().clone()
        online.draw(state, problem, 1)
        moved = (state.generator.head.weight.detach() - before).abs().max().item()
        assert moved == pytest.approx(1e-2 * factor, rel=1e-3, abs=1e-9)
        assert state.optimiser.param_groups[0]["lr"] == 1e-2  # saved as it is set, whatever the clock says


def test_a_gradient_is_clipped_to_its_norm_over_all_parameters(make_problem: MakeProblem) -> None:
    a, b = torch.tensor([3.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)

    def make() -> Tensor:
        return (10.0 * (a + b)).expand(1, 1, 8, 8)

    for clip, step in ((5.0, 5.0 / 2**0.5), (None, 1400.0)):
        moved = []
        optimiser = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
        before = [a.item(), b.item()]
        descend(make_problem(), Objective(((1.0, Spy()),)), [None], make, optimiser, 1, clip=clip)
        moved = [before[0] - a.item(), before[1] - b.item()]
        assert moved == pytest.approx([step, step], rel=1e-4)  # d/da of (10 (a + b))^2 is 200 * 7 in each
        with torch.no_grad():
            a.fill_(3.0)
            b.fill_(4.0)


def test_the_generators_gradient_is_clipped(make_problem: MakeProblem) -> None:
    """What Adam has stored of the first gradient is a tenth of it: beta is 0.9."""
    online = replace(SMALL, betas=(0.9, 0.999), objective=Objective(((1e3, OneHot("argmax")),)))
    norms = []
    for clip in (None, 5.0):
        problem = make_problem()
        state = replace(online, clip=clip).init(problem, 0, "test")
        replace(online, clip=clip).draw(state, problem, 1)
        stored = torch.cat([entry["exp_avg"].flatten() for entry in state.optimiser.state.values()])
        norms.append(10.0 * stored.norm().item())
    assert norms[0] > 6.0
    assert norms[1] == pytest.approx(5.0, rel=1e-3)


# -- what is shown -----------------------------------------------------------------------------------------------


def test_fresh_latents_at_every_draw(make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = SMALL.init(problem, 0, "test")
    x = [SMALL.draw(state, problem, 6).x for _ in range(4)]
    assert not torch.equal(x[1], x[2])
    assert not torch.equal(x[2], x[3])
    z = latents_of(state, 6)  # of the fifth draw, at which nothing is learnt
    with torch.no_grad():
        expected = state.generator.eval()(z)
    assert torch.equal(SMALL.draw(state, problem, 6).x, expected)


@pytest.mark.parametrize("head", ["sigmoid", "batchnorm"])
def test_latents_of_a_round_show_what_the_generators_step_has_made_of_them(
    make_problem: MakeProblem, head: Any
) -> None:
    online = replace(SMALL, reuse="latents", network=TrunkNetwork(6, "small", head), learning_rate=0.05)
    problem = make_problem()
    state = online.init(problem, 0, "test")
    for _ in range(2):  # rounds
        z, before = latents_of(state, 6), copy.deepcopy(state.generator)
        batches = [online.draw(state, problem, 6) for _ in range(3)]
        with torch.no_grad():
            expected, old = state.generator(z), before(z)
        assert all(torch.equal(batch.x, expected) for batch in batches)
        assert not torch.allclose(expected, old, atol=1e-4)  # and not of it before the step
        assert not torch.equal(z, latents_of(state, 6))


def test_the_teacher_labels_a_round_once(make_problem: MakeProblem) -> None:
    online, problem = replace(SMALL, reuse="latents"), make_problem()
    state = online.init(problem, 0, "test")
    for draw in range(6):
        problem.label(online.draw(state, problem, 6))
        assert problem.teacher.counts["label"]["forward"] == 6 * (1 + draw // 3)


@pytest.mark.parametrize("head", ["sigmoid", "batchnorm"])
def test_shared_images_are_those_the_last_step_judged(make_problem: MakeProblem, head: Any) -> None:
    spy = Spy()
    online = OnlineGenerator(
        Objective(((1.0, spy), (1.0, OneHot("argmax")))),
        TrunkNetwork(6, "small", head, biases=True),
        batch=6,
        learning_rate=0.05,
        generator_steps=2,
        reuse="shared",
        sampled="batch",
    )
    problem = make_problem()
    state = online.init(problem, 0, "test")
    for _ in range(2):
        batch = online.draw(state, problem, 6)
        judged = spy.calls[-1]  # before the step that they have led to
        assert torch.equal(batch.x, judged)
        assert batch.teacher is not None
        with torch.no_grad():
            torch.testing.assert_close(batch.teacher.logits, problem.teacher(batch.x).logits)


def test_shared_answers_are_not_asked_again(make_problem: MakeProblem) -> None:
    for head in ("sigmoid", "tanh", "tanh_batchnorm", "batchnorm"):
        online = replace(SMALL, reuse="shared", student_steps=1, network=TrunkNetwork(6, "small", cast(Any, head)))
        problem = make_problem()
        state = online.init(problem, 0, "test")
        for draw in (1, 2):
            problem.label(online.draw(state, problem, 6))
            assert problem.teacher.counts["label"]["forward"] == 0
            assert problem.teacher.counts["synthesise"] == {"forward": 6 * draw, "backward": 6 * draw}


def test_answers_in_another_precision_are_not_shared(make_problem: MakeProblem) -> None:
    """A teacher that labels in bfloat16 answers otherwise there than while images are made."""
    online, problem = replace(SMALL, reuse="shared", student_steps=1), make_problem()
    problem.teacher = Probe(problem.teacher.module, problem.spec, precision="bfloat16")
    batch = online.draw(online.init(problem, 0, "test"), problem, 6)
    assert batch.teacher is not None
    assert batch.teacher.precision == "bfloat16"
    assert problem.label(batch) is batch.teacher
    assert torch.equal(batch.teacher.logits, problem.label(replace(batch, teacher=None)).logits)


@pytest.mark.parametrize("reuse", ["latents", "shared"])
def test_draws_of_any_size_go_round_the_rows_and_beyond_them(make_problem: MakeProblem, reuse: Any) -> None:
    online, problem = replace(SMALL, reuse=reuse, student_steps=9), make_problem()
    state = online.init(problem, 0, "test")
    first = online.draw(state, problem, 6).x
    four, more = online.draw(state, problem, 4).x, online.draw(state, problem, 4).x
    assert torch.equal(torch.cat([four, more]), torch.cat([first, first])[:8])
    assert torch.equal(online.draw(state, problem, 4).x, first[2:])  # twelve rows: at the start again
    eight = online.draw(state, problem, 8)
    assert torch.equal(eight.x[:6], first)
    assert len(eight.x.flatten(1).unique(dim=0)) == 8  # two further ones
    assert eight.teacher is not None
    with torch.no_grad():
        torch.testing.assert_close(eight.teacher.logits, problem.teacher(eight.x).logits)
    assert torch.equal(online.draw(state, problem, 8).x, eight.x)


@pytest.mark.parametrize("reuse", ["latents", "shared"])
def test_draws_that_are_not_learnt_from_are_fresh(make_problem: MakeProblem, reuse: Any) -> None:
    """Scored on the rows it has learnt from, a student would be scored on what it remembers."""
    online, problem = replace(SMALL, reuse=reuse), make_problem()
    state = online.init(problem, 0, "test")
    shown = online.draw(state, problem, 6).x
    fresh = online.draw(state, problem, 6, learn=False).x
    assert not torch.isclose(fresh[:, None], shown[None]).flatten(2).all(dim=2).any()
    assert torch.equal(online.draw(state, problem, 6).x, shown)


def test_nothing_is_carried_where_answers_depend_on_their_company(make_problem: MakeProblem) -> None:
    online, problem = replace(SMALL, reuse="shared", labelling="batch"), make_problem()
    state = online.init(problem, 0, "test")
    for n in (6, 4, 9):
        batch = online.draw(state, problem, n)
        assert batch.teacher is None
        assert batch.labelling == ((n, "batch"),)
    assert problem.teacher.counts["label"]["forward"] == 0


# -- how it is sampled -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_sampling_moves_no_stored_statistic(make_problem: MakeProblem, mode: Any) -> None:
    online, problem = replace(SMALL, sampled=mode, student_steps=100), make_problem()
    state = online.init(problem, 0, "test")
    online.draw(state, problem, 6)
    before = net(state.generator)
    online.draw(state, problem, 6)
    online.draw(state, problem, 6, learn=False)
    assert same(before, net(state.generator))
    assert all(not part.training and getattr(part, "track_running_stats", True) for part in state.generator.modules())
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    whole, part = online.images(state, z), online.images(state, z[:3])
    assert torch.allclose(whole[:3], part, atol=1e-5) == (mode == "eval")
    if mode == "batch":
        with torch.no_grad():
            torch.testing.assert_close(whole, copy.deepcopy(state.generator).train()(z))


def test_sampling_puts_its_network_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(2).eval()
    with pytest.raises(RuntimeError, match="planted"), sampling(norm, "batch"):
        raise RuntimeError("planted")
    assert (norm.training, norm.track_running_stats) == (False, True)


def test_the_average_follows_by_hand_and_gives_half_of_every_draw(make_problem: MakeProblem) -> None:
    online, problem = replace(SMALL, decay=0.9, student_steps=2, learning_rate=0.05), make_problem()
    state = online.init(problem, 0, "test")
    expected = {name: p.detach().clone() for name, p in state.generator.named_parameters()}
    for draw in range(5):
        before = net(state.average)
        batch = online.draw(state, problem, 7)
        if draw % 2:
            assert same(before, net(state.average))
        else:
            for name, p in state.generator.named_parameters():
                expected[name] = 0.9 * expected[name] + 0.1 * p.detach()
        for name, p in state.average.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name])
        for mean, now in zip(state.average.buffers(), state.generator.buffers(), strict=True):
            assert torch.equal(mean, now)
        assert len(batch) == 7
    z = latents_of(state, 7)
    x = online.draw(state, problem, 7, learn=False).x
    with torch.no_grad():
        own, slow = state.generator(z), state.average(z)
    assert torch.equal(x, torch.cat([state.generator(z[:4]).detach(), state.average(z[4:]).detach()]))
    assert not torch.allclose(own, slow, atol=1e-3)


# -- refusals ----------------------------------------------------------------------------------------------------


def test_too_few_rows_for_the_classes_to_balance(make_problem: MakeProblem) -> None:
    problem, balanced = make_problem(), Objective(((1.0, Balance()),))
    with pytest.raises(ValueError, match="dafl: batch: expected at least 10 rows to balance 10 classes, found 9"):
        enough_rows(balanced, 9, problem, "dafl")
    enough_rows(balanced, 10, problem, "dafl")
    enough_rows(Objective(((1.0, Disagreement()), (0.0, Balance()))), 2, problem, "dafl")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 1}, "batch: expected an integer >= 2, found 1"),
        ({"student_steps": 0}, "student_steps: expected an integer >= 1"),
        ({"generator_steps": -1}, "generator_steps: expected an integer >= 0"),
        ({"generator_steps": 0, "reuse": "shared"}, "generator_steps: expected an integer >= 1"),
        ({"reuse": "share"}, "reuse: expected one of fresh, latents, shared, found 'share'"),
        ({"sampled": "train"}, "sampled: expected one of eval, batch, found 'train'"),
        ({"rate": "cosin"}, "rate: expected one of constant, cosine, steps"),
        ({"rate": "steps"}, r"milestones: expected rising fractions of the run in \(0, 1\), found \(\)"),
        ({"rate": "steps", "milestones": (0.5, 0.4)}, "milestones: expected rising fractions"),
        ({"milestones": (0.5,)}, r"milestones: expected none with rate constant, found \(0.5,\)"),
        ({"clip": 0.0}, "clip: expected a number > 0"),
        ({"decay": 1.5}, r"decay: expected a number in \[0, 1\]"),
        ({"decay": 0.9, "reuse": "shared"}, "decay: expected None where images are shared"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number > 0"),
        ({"objective": Objective(())}, "objective: expected at least one term"),
        ({"labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_the_wrong_setting(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **given)


def test_names_the_wrong_setting_of_its_network() -> None:
    with pytest.raises(ValueError, match="head: expected one of sigmoid, tanh, tanh_batchnorm, batchnorm"):
        TrunkNetwork(head=cast(Any, "relu"))
    with pytest.raises(ValueError, match="latent: expected an integer >= 1"):
        TrunkNetwork(latent=0)
