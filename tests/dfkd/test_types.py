"""What crosses a border: shapes are judged, pixels change in one way only, rows keep together."""

from typing import Any

import pytest
import torch

from dfkd.types import Batch, InputSpec, Outputs, as_device, whole

X = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
TOLD = Outputs(torch.rand(4, 3), {"last": torch.rand(4, 5)}, ((4, "eval"),))


def test_the_box_and_its_parts() -> None:
    spec = InputSpec((3, 4, 5), 10, low=-1.0, high=3.0)
    assert (spec.channels, spec.height, spec.width, spec.span, spec.middle) == (3, 4, 5, 4.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (3, 4)}, r"shape: expected \(channels, height, width\)"),
        ({"shape": (0, 4, 4)}, "shape: expected"),
        ({"num_classes": 1}, "num_classes: expected an integer >= 2, found 1"),
        ({"low": 1.0}, r"low: expected a number below high \(1.0\), found 1.0"),
        ({"class_names": ("a",)}, "class_names: expected 3 names, found 1"),
    ],
)
def test_refuses_a_spec_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputSpec(**{"shape": (1, 2, 2), "num_classes": 3, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": X[0]}, r"x: expected \(n, c, h, w\), found \(1, 2, 2\)"),
        ({"y": torch.zeros(3)}, r"y: expected 4 rows, found \(3,\)"),
        ({"target": torch.zeros(5)}, "target: expected 4 rows"),
        ({"weight": torch.zeros(1)}, "weight: expected 4 rows"),
        ({"source": torch.zeros(3)}, "source: expected 4 rows"),
        ({"labelling": ((3, "eval"),)}, "labelling: expected runs that add up to 4 rows"),
        ({"teacher": Outputs(torch.zeros(3, 3))}, "teacher: expected 4 rows"),
    ],
)
def test_refuses_a_batch_whose_parts_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch(**{"x": X, **options})


def test_is_labelled_in_eval_unless_it_says_otherwise() -> None:
    assert Batch(X).labelling == ((4, "eval"),)
    assert Batch(X).mode == "eval"
    assert Batch(X, labelling=whole(4, "batch")).mode == "batch"
    with pytest.raises(ValueError, match="labelling: expected one BatchNorm mode for all rows"):
        _ = Batch(X, labelling=((1, "eval"), (3, "batch"))).mode
    with pytest.raises(ValueError, match="labelling: expected one of eval, batch, found 'train'"):
        whole(4, "train")  # type: ignore[arg-type]


def test_other_pixels_drop_what_the_teacher_said() -> None:
    batch = Batch(X, y=torch.arange(4), target=torch.ones(4), weight=torch.ones(4), teacher=TOLD)
    moved = batch.with_x(1.0 - X)
    assert moved.teacher is None
    assert torch.equal(moved.x, 1.0 - X)
    assert moved.y is batch.y
    assert moved.target is batch.target
    assert batch.teacher is TOLD
    with pytest.raises(ValueError, match="x: expected 4 rows, found 3"):
        batch.with_x(X[:3])


def test_rows_keep_together_in_the_order_asked_for() -> None:
    index = torch.tensor([2, 0, 2])
    batch = Batch(X, torch.arange(4), 10 + torch.arange(4), torch.arange(4.0), 20 + torch.arange(4), teacher=TOLD)
    some = batch.rows(index)
    assert torch.equal(some.x, X[index])
    found = (some.y, some.target, some.weight, some.source)
    assert [None if part is None else part.tolist() for part in found] == [
        [2, 0, 2],
        [12, 10, 12],
        [2.0, 0.0, 2.0],
        [22, 20, 22],
    ]
    assert some.teacher is not None
    assert torch.equal(some.teacher.logits, TOLD.logits[index])
    assert torch.equal(some.teacher.features["last"], TOLD.features["last"][index])
    assert some.labelling == some.teacher.labelling == ((3, "eval"),)


def test_rows_leave_behind_answers_that_depend_on_company() -> None:
    told = Outputs(TOLD.logits, {}, ((4, "batch"),))
    some = Batch(X, labelling=((4, "batch"),), teacher=told).rows(torch.tensor([0, 1]))
    assert some.teacher is None
    assert some.labelling == ((2, "batch"),)
    with pytest.raises(ValueError, match="labelling: expected one BatchNorm mode"):
        Batch(X, labelling=((1, "eval"), (3, "batch"))).rows(torch.tensor([0]))


def test_truth_is_never_the_class_aimed_at() -> None:
    with pytest.raises(ValueError, match="accuracy: needs ground-truth labels"):
        Batch(X, target=torch.zeros(4)).require_y("accuracy")
    y = torch.arange(4)
    assert Batch(X, y=y).require_y("accuracy") is y


def test_detached_outputs_keep_their_tags() -> None:
    logits = torch.zeros(4, 3, requires_grad=True) * 2
    out = Outputs(logits, {"a": logits}, ((4, "batch"),), "bfloat16").detach()
    assert not out.logits.requires_grad
    assert not out.features["a"].requires_grad
    assert (out.labelling, out.precision) == (((4, "batch"),), "bfloat16")


def test_the_device_is_named_or_found() -> None:
    assert as_device("cpu") == torch.device("cpu")
    assert as_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
