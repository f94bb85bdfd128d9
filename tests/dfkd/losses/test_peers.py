"""What networks teach each other, against loops in Python; where gradients go; which graphs are refused."""

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.losses import KL, Features, combine
from dfkd.losses.parts import At
from dfkd.losses.peers import Peers
from dfkd.problem import Probe, Problem
from dfkd.rng import initialised
from dfkd.schemes.mutual import Cohort
from dfkd.types import Batch, InputSpec, Outputs

N, K = 5, 4
GENERATOR = torch.Generator().manual_seed(6)
ROOT, TEACHER, A, B, C = 3.0 * torch.randn(5, N, K, generator=GENERATOR)
BATCH = Batch(torch.zeros(N, 1, 1, 1))


def slow_kl(target: list[float], taught: list[float], temperature: float) -> float:
    """Sum of p ln(p / q) in Python floats, p of the target."""
    weights = [[math.exp(z / temperature) for z in row] for row in (target, taught)]
    p, q = ([w / sum(row) for w in row] for row in weights)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def evaluate(peers: Peers, **nodes: Tensor) -> Tensor:
    given = {"a": A, "b": B, "c": C, "student": ROOT, "teacher": TEACHER, **nodes}
    student, teacher = given.pop("student"), given.pop("teacher")
    return peers(Outputs(student, given), Outputs(teacher), BATCH)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_mutual_learning_equals_its_definition(temperature: float) -> None:
    """Sum over i of 1 / (M - 1) times the sum over j of KL(p_j || p_i)."""
    members = {"a": A.tolist(), "b": B.tolist(), "c": C.tolist()}
    expected = [0.0] * N
    for i in members:
        for j in members:
            if i != j:
                for row in range(N):
                    expected[row] += slow_kl(members[j][row], members[i][row], temperature) / (len(members) - 1)
    found = evaluate(Peers(tuple(permutations(members, 2)), temperature))
    torch.testing.assert_close(found, torch.tensor(expected))


def test_each_node_that_is_taught_counts_once_whatever_its_sources() -> None:
    one = evaluate(Peers((("student", "a"),)))
    other = evaluate(Peers((("teacher", "b"),)))
    third = evaluate(Peers((("c", "b"),)))
    torch.testing.assert_close(
        evaluate(Peers((("student", "a"), ("teacher", "b"), ("c", "b")))), one + (other + third) / 2
    )
    expected = [slow_kl(p, q, 1.0) for p, q in zip(TEACHER.tolist(), B.tolist(), strict=True)]
    torch.testing.assert_close(other, torch.tensor(expected))


def test_members_that_agree_have_nothing_to_teach() -> None:
    slope = A.clone().requires_grad_(True)
    values = evaluate(Peers((("a", "b"), ("b", "a")), 2.0), a=slope, b=A + 7.0)
    assert values.abs().max() < 1e-5
    (found,) = torch.autograd.grad(values.sum(), slope)
    assert found.abs().max() < 1e-5


def test_gradients_go_to_those_who_are_taught_only() -> None:
    nodes = {name: value.clone().requires_grad_(True) for name, value in (("a", A), ("b", B), ("teacher", TEACHER))}
    evaluate(Peers((("a", "b"), ("teacher", "b"))), **nodes).sum().backward()
    assert nodes["b"].grad is not None
    assert nodes["b"].grad.abs().max() > 1e-3
    assert nodes["a"].grad is None
    assert nodes["teacher"].grad is None


def test_of_a_pair_each_learns_from_the_other_as_fixed() -> None:
    """The slope in b is q - p, that of KL with a fixed target; nothing of b's part as a target is in it."""
    b = B.clone().requires_grad_(True)
    evaluate(Peers((("a", "b"), ("b", "a"))), b=b).sum().backward()
    torch.testing.assert_close(b.grad, B.softmax(dim=1) - A.softmax(dim=1))


def test_a_source_that_is_attached_learns_too_but_never_the_teacher() -> None:
    nodes = {name: value.clone().requires_grad_(True) for name, value in (("a", A), ("b", B), ("teacher", TEACHER))}
    evaluate(Peers((("a", "b"), ("teacher", "b")), attached=True), **nodes).sum().backward()
    assert nodes["a"].grad is not None
    assert nodes["a"].grad.abs().max() > 1e-3
    assert nodes["teacher"].grad is None


@pytest.mark.parametrize(
    ("edges", "loop"),
    [
        ((("a", "b"), ("b", "a")), "a -> b -> a"),
        ((("x", "a"), ("a", "b"), ("b", "c"), ("c", "a")), "a -> b -> c -> a"),
        ((("a", "b"), ("a", "c"), ("teacher", "d"), ("c", "d"), ("d", "c")), "c -> d -> c"),
    ],
)
def test_a_cycle_without_a_detach_is_refused_and_named(edges: Any, loop: str) -> None:
    with pytest.raises(ValueError, match=f"edges: a cycle without a detach, {loop}; leave attached false"):
        Peers(edges, attached=True)
    Peers(edges)


def test_a_graph_with_two_ways_to_a_node_is_no_cycle() -> None:
    Peers((("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")), attached=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": ()}, r"edges: expected \[\[who teaches, who is taught\], ...\], found \(\)"),
        ({"edges": "ab"}, "edges: expected"),
        ({"edges": (("a", "b", "c"),)}, "edges: expected"),
        ({"edges": (("a", "teacher"),)}, "edges: the teacher is frozen, 'a' cannot teach it"),
        ({"edges": (("a", "a"),)}, "edges: 'a' cannot teach itself"),
        ({"edges": (("a", "b"), ("a", "b"))}, "edges: expected each edge once"),
        ({"edges": (("a", "b"),), "temperature": 0.0}, "temperature: expected a number > 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Peers(**options)


def test_a_node_that_gives_no_logits_is_named() -> None:
    with pytest.raises(ValueError, match=r"edges: expected logits of shape \(5, 4\) of 'b', found \(5, 4, 1\)"):
        evaluate(Peers((("a", "b"),)), b=B[:, :, None])


def test_nodes_are_looked_at_before_the_first_draw() -> None:
    spec = InputSpec((1, 3, 3), K)
    problem = Problem(Probe(two(2).get_submodule("0"), spec), Probe(First(), spec), spec, torch.device("cpu"))
    assert Peers((("teacher", "nets.0"), ("teacher", "nets.1"))).init(problem, 0) is None
    with pytest.raises(ValueError, match=r"edges: expected logits of shape \(n, 4\) of 'nets.0.1', found \(n, 6\)"):
        Peers((("teacher", "nets.0.1"),)).init(problem, 0)
    with pytest.raises(ValueError, match=r"unknown 'nets.7'; the nearest is 'nets.\d'"):
        Peers((("teacher", "nets.7"),)).init(problem, 0)
    cohort = Cohort([two(3).get_submodule("0"), two(4).get_submodule("1")])
    problem = Problem(problem.teacher, Probe(cohort, spec), spec, torch.device("cpu"))
    assert Peers((("members.0", "members.1"),)).init(problem, 0) is None  # the second is asked in training only


def test_needs_are_the_paths_and_the_teacher_where_it_teaches() -> None:
    assert Peers((("student", "a"), ("teacher", "b"), ("a", "b"))).needs == {"student": ("a", "b"), "teacher": ()}
    assert Peers((("teacher", "a"),)).uses_teacher
    assert not Peers((("student", "a"),)).uses_teacher
    assert Peers((("a", "b"),), temperature=3.0).scale == 9.0


def two(seed: int) -> nn.Module:
    with initialised(seed):
        nets = [nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, K)) for _ in range(2)]
    return nn.ModuleList(nets)


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = two(1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (net(x) for net in self.nets)  # type: ignore[attr-defined]
        del second
        answers: Tensor = first
        return answers


def test_a_loss_at_a_path_is_that_loss_on_the_network_there() -> None:
    """Logits and inner taps, with adapters, as if the network inside were the student."""
    spec = InputSpec((1, 3, 3), K)
    student, teacher = First(), two(2)[0]  # type: ignore[index]
    problem = Problem(Probe(teacher, spec), Probe(student, spec, name="student"), spec, torch.device("cpu"))
    features = Features((("1", "1"),))
    assert At("nets.1", features).needs == {"student": ("nets.1", "nets.1.1"), "teacher": ("1",)}
    objective = combine({"kl": (1.0, At("nets.1", KL(2.0))), "features": (3.0, At("nets.1", features))})
    adapters = objective.init(problem, 5)
    inside = Problem(Probe(teacher, spec), Probe(student.nets[1], spec), spec, torch.device("cpu"))  # type: ignore[index]
    plain = combine({"kl": (1.0, KL(2.0)), "features": (3.0, features)})
    batch = Batch(torch.rand(N, *spec.shape, generator=torch.Generator().manual_seed(3)))
    answers = []
    for where, terms, made in ((problem, objective, adapters), (inside, plain, plain.init(inside, 5))):
        with where.student.taps(*terms.needs["student"]), where.teacher.taps("1"):
            answers.append(terms(where.student(batch.x), where.teacher(batch.x), batch, made).total)
    torch.testing.assert_close(answers[0], answers[1], rtol=0.0, atol=0.0)
    assert answers[0] > 0.1
