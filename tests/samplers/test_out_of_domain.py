"""Images of another domain: which are drawn, as what, and what is said of their classes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dfkd.data import load, read_unlabelled
from dfkd.interfaces import is_data_free, sources
from dfkd.problem import Problem
from dfkd.types import InputSpec
from samplers import OutOfDomain, Pooled
from samplers.out_of_domain import overlap

MakeProblem = Callable[..., Problem]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey images without classes, two of them in a folder below, each of one brightness, of several sizes."""
    for i in range(6):
        where = tmp_path / "more" if i > 3 else tmp_path
        where.mkdir(exist_ok=True)
        Image.fromarray(np.full((8 + 3 * i, 10 + i), 40 * i, dtype=np.uint8)).save(where / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def as_rows(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row) for row in x.flatten(1).tolist())


def test_an_epoch_is_every_image_of_the_set_once(make_problem: MakeProblem) -> None:
    problem = make_problem(num_classes=7)  # other classes than the set's
    sampler = OutOfDomain("digits", limit=50)
    state = sampler.init(problem, 1)
    batches = [sampler.draw(state, problem, n) for n in (20, 30, 50)]
    images = as_rows(load("digits", limit=50).train.x.float() / 255)
    first = torch.cat([batch.x for batch in batches[:2]])
    assert as_rows(first) == images
    assert as_rows(batches[2].x) == images
    assert not torch.equal(first, batches[2].x)
    assert all(batch.y is None and batch.labelling[0][1] == "eval" for batch in batches)
    assert problem.teacher.images == 0


def test_a_folder_without_classes(folder: Path, make_problem: MakeProblem) -> None:
    problem = make_problem(shape=(3, 8, 12))
    sampler = OutOfDomain(str(folder), labelling="batch")
    batch = sampler.draw(sampler.init(problem, 1), problem, 6)
    assert batch.labelling == ((6, "batch"),)
    assert (batch.x == batch.x[:, :1, :1, :1]).all()
    assert sorted((255 * batch.x[:, 0, 0, 0]).round().int().tolist()) == [0, 40, 80, 120, 160, 200]
    assert int(batch.info["overlap"]) == 0
    some = OutOfDomain(str(folder), limit=4).init(problem, 1)
    assert len(some.place.images) == 4


def test_colours_become_grey_and_fill_the_size(colours: Path, make_problem: MakeProblem) -> None:
    rgb = load(colours).train.x.float()
    images, classes = read_unlabelled(str(colours), (1, 16, 16))
    assert classes == tuple(f"c{i}" for i in range(10))
    expected = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    torch.testing.assert_close(images.x[:, 0].float(), expected, atol=0.501, rtol=0.0)
    assert read_unlabelled(str(colours), (3, 10, 14))[0].x.shape == (40, 3, 10, 14)
    problem = make_problem(shape=(1, 16, 16), low=-1.0, high=2.0)
    sampler = OutOfDomain(str(colours))
    x = sampler.draw(sampler.init(problem, 1), problem, 40).x
    assert as_rows(((x + 1) / 3 * 255).round()) == as_rows(images.x)
    with pytest.raises(ValueError, match="expected a teacher of 1 or 3 channels, found 2 and images of 3"):
        sampler.init(make_problem(shape=(2, 16, 16)), 1)


def slow_entropy(logits: list[float]) -> float:
    weights = [math.exp(value - max(logits)) for value in logits]
    return -sum(w / sum(weights) * math.log(max(w / sum(weights), 1e-300)) for w in weights)


@pytest.mark.parametrize("keep", [1, 20, 60])
def test_keeps_what_the_teacher_is_least_sure_of(keep: int, make_problem: MakeProblem) -> None:
    problem = make_problem()
    state = OutOfDomain("digits", keep=keep, limit=60).init(problem, 1)
    assert problem.teacher.counts["synthesise"] == {"forward": 60, "backward": 0}
    x = load("digits", limit=60).train.x.float() / 255
    with torch.no_grad():
        entropies = [slow_entropy(row) for row in problem.teacher(x).logits.tolist()]
    chosen = sorted(range(60), key=lambda i: -entropies[i])[:keep]
    assert as_rows(state.place.images.x.float() / 255) == as_rows(x[chosen])


def test_is_not_data_free_and_names_its_source() -> None:
    sampler = Pooled(OutOfDomain("digits"))
    assert not is_data_free(sampler)
    assert sources(sampler) == ["digits"]


def named(problem: Problem, names: tuple[str, ...]) -> Problem:
    spec = problem.spec
    problem.spec = InputSpec(spec.shape, spec.num_classes, class_names=names)
    return problem


def test_says_which_classes_are_the_teachers(make_problem: MakeProblem) -> None:
    assert overlap(["Sea-Lion", "oak tree", "cat"], ["sea_lion", "CAT", "dog"]) == ["Sea-Lion", "cat"]
    assert overlap(["cat"], ()) == []
    problem = named(make_problem(num_classes=4), ("3", "seven", "7", "x"))
    sampler = OutOfDomain("digits", limit=20)
    with pytest.warns(UserWarning, match="data: 2 of the 10 classes of 'digits' bear the name of a class .*: 3, 7$"):
        state = sampler.init(problem, 1)
    assert int(sampler.draw(state, problem, 3).info["overlap"]) == 2
    other = named(make_problem(num_classes=2), ("cat", "dog"))
    assert int(sampler.draw(sampler.init(other, 1), other, 3).info["overlap"]) == 0


def test_names_what_it_cannot_use(tmp_path: Path, folder: Path, make_problem: MakeProblem) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"data: expected images \(.png, .jpg, .jpeg, ...\) in .*empty, found none; dead_leaves, "
    ):
        OutOfDomain(str(empty)).init(make_problem(), 1)
    with pytest.raises(ValueError, match="data: unknown 'digit', and no such file or folder; the nearest is 'digits'"):
        OutOfDomain("digit").init(make_problem(), 1)
    with pytest.raises(ValueError, match="keep: expected at most the 20 images of 'digits', found 21"):
        OutOfDomain("digits", keep=21, limit=20).init(make_problem(), 1)
    (folder / "broken.png").write_bytes((folder / "1.png").read_bytes()[:30])
    with pytest.raises(ValueError, match=r"data: .*broken.png is not a readable image"):
        OutOfDomain(str(folder)).init(make_problem(), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ""}, "data: expected the name of a data set or a path, found ''"),
        ({"data": "digits", "keep": 0}, "keep: expected an integer >= 1, found 0"),
        ({"data": "digits", "limit": 1.5}, "limit: expected an integer >= 1, found 1.5"),
        ({"data": "digits", "labelling": "train"}, "labelling: expected one of eval, batch"),
    ],
)
def test_names_a_wrong_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutOfDomain(**settings)


def test_the_teacher_is_left_as_it_was(make_problem: MakeProblem) -> None:
    problem = make_problem()
    problem.teacher.module.train()
    OutOfDomain("digits", keep=5, limit=20).init(problem, 1)
    assert problem.teacher.module.training
    assert not any(p.grad is not None for p in problem.teacher.module.parameters())
    assert isinstance(problem.teacher.module, nn.Module)
