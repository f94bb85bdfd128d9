"""YAML that is read strictly: as `yaml.safe_load` reads it, but for keys that stand there twice."""

from pathlib import Path

import pytest
import yaml

import dfkd
from dfkd.plain import read_yaml

ROOT = Path(dfkd.__file__).parent.parent

MERGED = """
base: &base {steps: 5, batch: 8}
one: {<<: *base, steps: 7}
two: {steps: 7, <<: *base}
both: &both {<<: [*base, {seed: 1}], batch: 9}
again: {<<: *both, steps: 6}
"""


@pytest.mark.parametrize("text", ["", "3", "a=b", "{a: [1, {b: 2}], 1: x, '1': y}", "a: {b: 1}\nc: {b: 1}\n", MERGED])
def test_reads_what_the_library_reads(text: str) -> None:
    assert read_yaml(text, "x.yaml") == yaml.safe_load(text)


def test_the_files_of_this_repository_have_no_key_twice() -> None:
    files = [*ROOT.glob("dfkd/*.yaml"), *ROOT.glob("experiments/*/*.yaml")]
    assert len(files) >= 3
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert read_yaml(text, str(file)) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: {steps: 5}\na: 1\nbudget: {steps: 7}\n", "found 'budget' in lines 1 and 3"),
        ("a:\n  - b:\n      c: 1\n      'c': 2\n", "found 'c' in lines 3 and 4"),
        ("{a: 1, b: {x: 1, x: 1}}", "found 'x' twice in line 1"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  <<: *a\n", "found '<<' in lines 3 and 4"),
        ("a: 1\na: 1\na: 1\n", "found 'a' in lines 1 and 2"),
    ],
)
def test_a_key_that_is_there_twice_is_named_with_its_lines(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^x\.yaml: expected each key once, {said}; leave one of them out$"):
        read_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1\nc: 2\n", "not YAML in line 3: "),
        ("{[a]: 1}", "not YAML"),
        ("a: 2024-13-45", "not YAML: month"),
        ("a: \0", "not YAML: "),
        ("a: !!bool x", "not YAML: "),
        ("[" * 3000, "not YAML: "),
    ],
)
def test_what_is_no_yaml_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^x\.yaml: {said}") as found:
        read_yaml(text, "x.yaml")
    assert "\n" not in str(found.value)
