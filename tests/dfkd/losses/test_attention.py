"""Attention transfer against its definition in Python floats, its identities and its extremes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfkd.losses import Attention, attention_distance, attention_map
from dfkd.problem import Probe, Problem
from dfkd.types import Batch, InputSpec, Outputs

GENERATOR = torch.Generator().manual_seed(2)
OURS, THEIRS = torch.randn(3, 2, 4, 4, generator=GENERATOR), torch.randn(3, 5, 4, 4, generator=GENERATOR)


def slow_attention(maps: Tensor) -> list[list[float]]:
    """Each row's vector over positions: mean over channels of squares, over its Euclidean norm."""
    vectors = []
    for row in maps.flatten(2).tolist():
        q = [sum(value**2 for value in position) / len(position) for position in zip(*row, strict=True)]
        vectors.append([value / math.hypot(*q) for value in q])
    return vectors


def slow_distance(ours: list[list[float]], theirs: list[list[float]]) -> Tensor:
    return torch.tensor(
        [sum((a - b) ** 2 for a, b in zip(*p, strict=True)) / len(p[0]) for p in zip(ours, theirs, strict=True)]
    )


def test_equals_its_definition() -> None:
    torch.testing.assert_close(
        attention_distance(OURS, THEIRS), slow_distance(slow_attention(OURS), slow_attention(THEIRS))
    )


@pytest.mark.parametrize("student_is_larger", [True, False])
def test_the_larger_attention_map_is_averaged_to_the_smaller(student_is_larger: bool) -> None:
    small = THEIRS[:, :, :2, :2]
    squares = OURS.square().mean(dim=1, keepdim=True).unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5))
    slow = slow_distance(slow_attention(squares.sqrt()), slow_attention(small))
    pair = (OURS, small) if student_is_larger else (small, OURS)
    torch.testing.assert_close(attention_distance(*pair), slow)


def test_knows_neither_scale_nor_sign_nor_the_order_of_channels_and_is_zero_for_equal_maps() -> None:
    values = attention_distance(OURS, THEIRS)
    scales = torch.tensor([1e-9, 3.0, 1e25])[:, None, None, None]  # each row its own; squares of 1e25 overflow
    torch.testing.assert_close(attention_distance(scales * OURS, THEIRS), values)
    torch.testing.assert_close(attention_distance(OURS, -scales * THEIRS[:, [4, 2, 0, 1, 3]]), values)
    assert attention_distance(OURS, -7.0 * OURS).abs().max() < 1e-12
    assert values.min() > 1e-3


def test_rows_change_places_with_their_values() -> None:
    order = torch.tensor([2, 0, 1])
    values = attention_distance(OURS, THEIRS)
    torch.testing.assert_close(attention_distance(OURS[order], THEIRS[order]), values[order])


def test_a_map_of_zeros_attends_to_nothing() -> None:
    ours = torch.cat([torch.zeros(1, 2, 4, 4), OURS[1:]]).requires_grad_(True)
    values = attention_distance(ours, THEIRS)
    torch.testing.assert_close(values[0].detach(), torch.tensor(1 / 16))  # the teacher's unit vector over 16 places
    (slope,) = torch.autograd.grad(values.sum(), ours)
    assert slope.isfinite().all()
    assert slope[0].abs().max() == 0.0
    assert slope[1].abs().max() > 1e-4
    assert attention_distance(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 4, 4)) == 0.0


def test_gradients_by_finite_differences() -> None:
    ours = OURS.double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: attention_distance(x, THEIRS[:, :, :2, :2].double()), (ours,))
    assert torch.autograd.gradcheck(lambda x: attention_distance(x, THEIRS.double()), (ours,))


def test_pairs_add_up() -> None:
    loss = Attention([["a", "b"], ["b", "b"]])  # type: ignore[arg-type]  # as YAML has it
    assert loss.needs == {"student": ("a", "b"), "teacher": ("b",)}
    student, teacher = Outputs(OURS, {"a": OURS, "b": THEIRS}), Outputs(OURS, {"b": OURS.square()})
    expected = attention_distance(OURS, OURS.square()) + attention_distance(THEIRS, OURS.square())
    torch.testing.assert_close(loss(student, teacher, Batch(torch.zeros(3, 1, 1, 1))), expected)


SPEC = InputSpec((1, 4, 4), 3)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("0", "2"), r"attention: cannot fit the map \(2, 4, 4\) .* to the vector \(2,\)"),
        (
            ("2", "2"),
            r"attention: expected maps .* found \(2,\) for '2' of the student .* `features` fits what is no map",
        ),
        (("0", "1"), r"attention: expected maps .* share two positions or more, found \(2, 4, 4\) .* and \(2, 1, 1\)"),
        (("7", "0"), "module path of the student: unknown '7'"),
        ((), "pairs: expected"),
    ],
)
def test_refuses_what_is_no_map(pair: Any, message: str) -> None:
    nets = [
        Probe(nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), SPEC, name=who)
        for who in ("teacher", "student")
    ]
    p = Problem(nets[0], nets[1], SPEC, torch.device("cpu"))
    assert Attention((("0", "0"),)).init(p, 0) is None
    with pytest.raises(ValueError, match=message):
        Attention((pair,)).init(p, 0)


def test_names_what_is_no_map() -> None:
    with pytest.raises(ValueError, match=r"maps: expected \(n, c, h, w\), found \(3, 2\)"):
        attention_map(OURS[:, :, 0, 0])
