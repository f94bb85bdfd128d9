"""Feature distances and their adapters against loops in Python, their identities, and shapes that do not fit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd import config
from dfkd.losses import Features, feature_distance
from dfkd.losses.features import Adapted, alike
from dfkd.losses.norms import direction
from dfkd.problem import Probe, Problem
from dfkd.rng import initialised
from dfkd.types import Batch, InputSpec, Outputs

GENERATOR = torch.Generator().manual_seed(2)
SPEC = InputSpec((1, 8, 8), 3)
OURS, THEIRS = torch.randn(2, 3, 2, 4, 4, generator=GENERATOR)  # maps (n, c, h, w)
WIDE = torch.randn(3, 5, 2, 2, generator=GENERATOR)
EMPTY = Batch(torch.zeros(3, 1, 1, 1))


class Net(nn.Module):
    """Taps of every kind: a map, a map of 1x1, a vector, a sequence, nothing, and five axes."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(1, channels, 3, stride=stride, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.vector = nn.Flatten()
        self.tokens, self.nothing, self.cubes = nn.Identity(), nn.Identity(), nn.Identity()
        self.last = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.map(x)
        self.tokens(maps.flatten(2).transpose(1, 2))
        self.nothing(maps[:, :0])
        self.cubes(maps[:, None])
        logits: Tensor = self.last(self.vector(self.pool(maps.relu())))
        return logits


def problem(stride: int = 2) -> Problem:
    with initialised(4):
        probes = [Probe(Net(5, stride), SPEC, name="teacher"), Probe(Net(2, 1), SPEC, name="student")]
    return Problem(probes[0], probes[1], SPEC, torch.device("cpu"))


def slow_distance(ours: Tensor, theirs: Tensor, distance: str) -> list[float]:
    """One row after the other in Python floats; channels are the first axis of a row."""
    values = []
    for mine, other in zip(ours, theirs, strict=True):
        if distance == "cosine":
            columns = zip(*(maps.reshape(len(maps), -1).T.tolist() for maps in (mine, other)), strict=True)
            each = [
                1.0 - sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)
                for u, v in columns
            ]
        else:
            pairs = zip(mine.flatten().tolist(), other.flatten().tolist(), strict=True)
            each = [(a - b) ** 2 if distance == "mse" else abs(a - b) for a, b in pairs]
        values.append(sum(each) / len(each))
    return values


# -- the distances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["mse", "l1", "cosine"])
def test_distances_equal_their_definitions(distance: Any) -> None:
    slow = slow_distance(OURS, THEIRS, distance)
    torch.testing.assert_close(feature_distance(OURS, THEIRS, distance), torch.tensor(slow))


def test_the_cosine_of_vectors_and_of_sequences_is_over_their_channels() -> None:
    vectors, others = OURS.flatten(1), THEIRS.flatten(1)
    slow = slow_distance(vectors, others, "cosine")
    torch.testing.assert_close(feature_distance(vectors, others, "cosine"), torch.tensor(slow))
    ours, theirs = (maps.flatten(2).transpose(1, 2) for maps in (OURS, THEIRS))  # (n, positions, channels)
    torch.testing.assert_close(feature_distance(ours, theirs, "cosine"), feature_distance(OURS, THEIRS, "cosine"))


@pytest.mark.parametrize("distance", ["mse", "l1", "cosine"])
def test_zero_where_equal_and_the_rows_change_places_with_their_values(distance: Any) -> None:
    assert feature_distance(OURS, OURS.clone(), distance).abs().max() < 1e-6
    order = torch.tensor([2, 0, 1])
    values = feature_distance(OURS, THEIRS, distance)
    torch.testing.assert_close(feature_distance(OURS[order], THEIRS[order], distance), values[order])


def test_the_cosine_knows_no_scale() -> None:
    values = feature_distance(OURS, THEIRS, "cosine")
    for factor in (1e-6, 1e25):
        torch.testing.assert_close(feature_distance(factor * OURS, THEIRS, "cosine"), values)
    torch.testing.assert_close(feature_distance(-OURS, THEIRS, "cosine"), 2.0 - values)


def test_zero_vectors_have_no_direction_and_no_gradient() -> None:
    x = torch.stack([torch.zeros(4), torch.ones(4)]).requires_grad_(True)
    made = direction(x, 1)
    assert torch.equal(made.detach(), torch.stack([torch.zeros(4), torch.full((4,), 0.5)]))
    (slope,) = torch.autograd.grad(made[:, 0].sum(), x)
    assert torch.equal(slope[0], torch.zeros(4))
    torch.testing.assert_close(slope[1], torch.tensor([0.375, -0.125, -0.125, -0.125]))


@pytest.mark.parametrize("distance", ["mse", "l1", "cosine"])
def test_gradients_by_finite_differences(distance: Any) -> None:
    ours, theirs = OURS[:, :, :2, :2].double().requires_grad_(True), THEIRS[:, :, :2, :2].double()
    assert torch.autograd.gradcheck(lambda x: feature_distance(x, theirs, distance), (ours,))


def test_the_larger_map_is_averaged_to_the_smaller() -> None:
    for ours, theirs, swapped in ((OURS, WIDE, False), (WIDE, OURS, True)):
        mine, other = alike(ours, theirs)
        small, kept = (other, mine) if swapped else (mine, other)
        assert torch.equal(kept, WIDE)
        for row in range(2):
            for column in range(2):
                block = OURS[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                torch.testing.assert_close(small[:, :, row, column], block.mean(dim=(2, 3)))
    crossed = alike(torch.zeros(1, 1, 2, 6), torch.zeros(1, 1, 4, 3))
    assert [part.shape for part in crossed] == [(1, 1, 2, 3)] * 2


# -- adapters --------------------------------------------------------------------------------------------------------


def test_a_1x1_convolution_by_hand() -> None:
    p = problem()
    loss = Features((("map", "map"),))
    adapted = loss.init(p, 5)
    assert isinstance(adapted, Adapted)
    (convolution,) = adapted.adapters
    weight, bias = (part.detach() for part in convolution.parameters())
    assert weight.shape == (5, 2, 1, 1)
    pooled = OURS.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    slow = torch.zeros(3, 5, 2, 2)
    for n in range(3):
        for c in range(5):
            for h in range(2):
                for w in range(2):
                    slow[n, c, h, w] = sum(weight[c, d, 0, 0] * pooled[n, d, h, w] for d in range(2)) + bias[c]
    values = adapted(Outputs(EMPTY.x, {"map": OURS}), Outputs(EMPTY.x, {"map": WIDE}), EMPTY)
    torch.testing.assert_close(values.detach(), torch.tensor(slow_distance(slow, WIDE, "mse")))


def test_pairs_add_up_and_the_gradient_reaches_student_and_adapters() -> None:
    p, x = problem(), torch.rand(6, *SPEC.shape, generator=torch.Generator().manual_seed(6))
    pairs = [("map", "map"), ("vector", "vector"), ("pool", "vector"), ("penultimate", "penultimate")]
    with p.student.taps("map", "vector", "pool", "penultimate"), p.teacher.taps("map", "vector", "penultimate"):
        ours, theirs = p.student.learn(x), p.teacher(x).detach()
    both = Features(tuple(pairs)).init(p, 7)
    assert both is not None
    total = both(ours, theirs, Batch(x))
    total.mean().backward()
    for module in (both, p.student.module.get_submodule("map")):
        assert all(q.grad is not None and q.grad.abs().max() > 1e-6 for q in module.parameters())
    alone = []
    for place, pair in enumerate(pairs):
        one = Features((pair,)).init(p, 7)
        assert isinstance(one, Adapted)
        assert isinstance(both, Adapted)
        one.adapters[0].load_state_dict(both.adapters[place].state_dict())
        alone.append(one(ours, theirs, Batch(x)))
    torch.testing.assert_close(total, torch.stack(alone).sum(dim=0))


def test_adapters_come_from_the_seed_and_asking_for_shapes_costs_nothing() -> None:
    p, loss = problem(), Features((("map", "map"), ("vector", "vector")))
    before, buffers = torch.get_rng_state(), {k: v.clone() for k, v in p.student.module.state_dict().items()}
    first, again, other = (loss.init(p, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first is not None
    assert again is not None
    assert other is not None
    same, different = list(again.parameters()), list(other.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), different, strict=True))
    assert p.teacher.images == p.student.images == 0
    assert all(torch.equal(v, buffers[k]) for k, v in p.student.module.state_dict().items())


def test_where_needed_leaves_equal_channels_as_they_are() -> None:
    p = problem()
    p.teacher = p.student
    loss = Features((("map", "map"), ("last", "last")), adapter="where_needed")
    adapted = loss.init(p, 0)
    assert adapted is not None
    assert not list(adapted.parameters())
    x = torch.rand(4, *SPEC.shape, generator=torch.Generator().manual_seed(8))
    with p.student.taps("map", "last"):
        out = p.student(x)
    assert torch.equal(adapted(out, out, Batch(x)), torch.zeros(4))
    assert torch.equal(loss(out, out, Batch(x)), torch.zeros(4))
    assert len(list(Features((("map", "map"),)).init(p, 0).parameters())) == 2  # type: ignore[union-attr]


def test_sequences_of_one_length_fit() -> None:
    p = problem(stride=1)
    adapted = Features((("tokens", "tokens"),)).init(p, 0)
    assert adapted is not None
    assert [part.shape for part in adapted.parameters()] == [(5, 2), (5,)]


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ("tokens", "map"),
            r"sequence \(64, 2\) of the student's 'tokens' to the map \(5, 4, 4\) of the teacher's 'map'",
        ),
        (("tokens", "tokens"), r"sequence \(64, 2\) .* to the sequence \(16, 5\) .*; .* a sequence one of its length"),
        (("map", "vector"), r"map \(2, 8, 8\) .* to the vector \(5,\) .*; .* a vector \(or a map of 1x1\) a vector"),
        (("nothing", "map"), r"empty features \(0, 8, 8\) of the student's"),
        (("cubes", "cubes"), r"features \(1, 2, 8, 8\) .* to the features \(1, 5, 4, 4\)"),
        (("mpa", "map"), "module path of the student: unknown 'mpa'; the nearest is 'map'"),
        (("map", "vectr"), "module path of the teacher: unknown 'vectr'; the nearest is 'vector'"),
    ],
)
def test_features_that_do_not_fit_are_named(pair: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features((pair,)).init(problem(), 0)


def test_called_without_adapters_it_says_where_they_are() -> None:
    with pytest.raises(ValueError, match=r"expected 'a' of the student .* 'b' .*\(3, 5, 2, 2\), found \(3, 2, 2, 2\)"):
        Features((("a", "b"),))(Outputs(EMPTY.x, {"a": OURS}), Outputs(EMPTY.x, {"b": WIDE}), EMPTY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": ()}, r"pairs: expected \[\[student's module path, teacher's\], ...\], found \(\)"),
        ({"pairs": "map"}, "pairs: expected"),
        ({"pairs": ("map", "map")}, "pairs: expected"),
        ({"pairs": (("map", ""),)}, "pairs: expected"),
        ({"pairs": (("map", "map", "map"),)}, "pairs: expected"),
        ({"pairs": (("map", "map"),), "distance": "l2"}, "distance: expected one of mse, l1, cosine, found 'l2'"),
        ({"pairs": (("map", "map"),), "adapter": "never"}, "adapter: expected one of always, where_needed"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Features(**options)


def test_shapes_and_distances_of_the_plain_function() -> None:
    with pytest.raises(ValueError, match=r"teacher: expected features of shape \(3, 2, 4, 4\), found \(3, 5, 2, 2\)"):
        feature_distance(OURS, WIDE)
    with pytest.raises(ValueError, match="distance: expected one of mse, l1, cosine, found 'l2'"):
        feature_distance(OURS, THEIRS, "l2")  # type: ignore[arg-type]


def test_is_written_in_yaml_as_a_list_of_pairs() -> None:
    objective = config.objective({"features": {"pairs": [["a", "b"], ["c", "d"]], "weight": 100}})
    assert objective.terms["features"] == (100.0, Features((("a", "b"), ("c", "d"))))
    assert objective.needs == {"student": ("a", "c"), "teacher": ("b", "d")}
    with pytest.raises(
        ValueError, match=r"objective.features.pairs: expected a list, each a list of 2, found \['a', 'b'\]"
    ):
        config.objective({"features": {"pairs": ["a", "b"]}})
