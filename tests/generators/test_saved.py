"""Descriptions of saved generators: given back as they were, and one line for whatever is none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from generators.saved import BESIDE, absent, check, describe, read_tensors, write

DESCRIPTION: dict[str, Any] = {
    "kind": "sn_gan",
    "shape": (1, 8, 8),
    "low": 0.0,
    "high": 1.0,
    "classes": 3,
    "class_names": ["a", "b", "c"],
    "options": {"width": 4},
    "trained_on": {"source": "digits", "digest": "abc", "size": None, "limit": 5},
    "steps": 7,
    "seed": 1,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "generator.safetensors"
    write(path, {"a": torch.arange(400.0), "b": torch.ones(2, 3)}, DESCRIPTION)
    return path


@pytest.mark.parametrize(
    ("missing", "close"),
    [("maed/generator.safetensors", "made/generator.safetensors"), ("made/generator", "made/generator.safetensors")],
)
def test_the_nearest_path_is_named(missing: str, close: str, file: Path) -> None:
    root = file.parents[1]
    assert absent(root / missing) == f"{str(root / missing)!r}; the nearest is {str(root / close)!r}"
    assert absent(root / "maed" / "none") == f"{str(root / 'maed' / 'none')!r}; the nearest is {str(root / 'made')!r}"
    for alone in (root / "xyz", root / "xyz" / "made", file / "inside"):
        assert absent(alone) == repr(str(alone))


def test_gives_back_what_was_written(file: Path) -> None:
    assert describe(file) == DESCRIPTION
    tensors = read_tensors(file)
    assert torch.equal(tensors["a"], torch.arange(400.0))
    assert torch.equal(tensors["b"], torch.ones(2, 3))
    assert [path.name for path in file.parent.iterdir()] == ["generator.safetensors"]


def test_replaces_an_older_one_or_leaves_it(file: Path) -> None:
    write(file, {"a": torch.zeros(1)}, {**DESCRIPTION, "seed": 2})
    assert describe(file)["seed"] == 2
    with pytest.raises(ValueError, match=r"file: the description of .* has no steps"):
        write(file, {"a": torch.ones(1)}, {key: value for key, value in DESCRIPTION.items() if key != "steps"})
    assert torch.equal(read_tensors(file)["a"], torch.zeros(1))


def test_a_folder_says_it_beside(tmp_path: Path) -> None:
    (tmp_path / BESIDE).write_text(json.dumps(DESCRIPTION))
    assert describe(tmp_path) == DESCRIPTION
    (tmp_path / BESIDE).write_text('{"kind": ')
    with pytest.raises(ValueError, match=rf"file: the description of .*{BESIDE} is damaged"):
        describe(tmp_path)


def test_a_run_folder_points_at_what_is_in_it(file: Path) -> None:
    with pytest.raises(ValueError, match=r"is no generator, as it has no dfkd.json; perhaps .*generator.safetensors"):
        describe(file.parent)


def test_refuses_what_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file: no such file or folder: '.*missing'"):
        describe(tmp_path / "missing")
    other = tmp_path / "student.safetensors"
    save_file({"a": torch.ones(1)}, other, metadata={"dfkd": "{}"})
    with pytest.raises(ValueError, match=r"file: .*student.safetensors is no generator"):
        describe(other)
    text = tmp_path / "text.safetensors"
    text.write_text("these are no weights")
    with pytest.raises(ValueError, match=r"file: .*text.safetensors is not a readable safetensors file"):
        describe(text)
    pickled = tmp_path / "pickled.safetensors"
    torch.save({"a": torch.ones(1)}, pickled)
    with pytest.raises(ValueError, match=r"file: .*pickled.safetensors holds pickled objects, which could run code"):
        describe(pickled)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_refuses_a_file_that_was_cut_short(file: Path, kept: float) -> None:
    content = file.read_bytes()
    kept = int(len(content) * kept) if isinstance(kept, float) else kept
    file.write_bytes(content[:kept])
    for read in (describe, read_tensors):
        with pytest.raises(ValueError, match=r"file: .* is not a readable safetensors file, perhaps cut short"):
            read(file)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": 3}, "has no kind, or another than is expected"),
        ({"shape": [1, 8]}, r"has the shape \[1, 8\], expected \(c, h, w\)"),
        ({"shape": [1, 8, 0]}, "has the shape"),
        ({"classes": 2}, "has 3 class_names for 2 classes"),
        ({"trained_on": {"source": "digits", "size": None, "limit": None}}, r"does not say .* trained on \(digest\)"),
    ],
)
def test_refuses_descriptions_that_are_none(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"file: the description of here {said}"):
        check({**DESCRIPTION, **changed}, "here")


def test_refuses_what_is_not_even_one() -> None:
    with pytest.raises(ValueError, match="file: expected the description of a generator in here, found 3"):
        check(3, "here")


def test_says_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"file: cannot write .*generator.safetensors"):
        write(tmp_path / "taken" / "generator.safetensors", {"a": torch.ones(1)}, DESCRIPTION)
