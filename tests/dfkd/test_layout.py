"""A folder of the user's that hides one of our packages is one clear error."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfkd import layout


def test_our_own_packages_are_fine() -> None:
    layout.check_layout()


@pytest.mark.parametrize("name", ["samplers", "generators"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_package_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    found = tmp_path / name if kind == "package" else tmp_path / f"{name}.py"
    if kind == "package":
        found.mkdir()
        (found / "__init__.py").write_text("")
    else:
        found.write_text("")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name}: {found} hides dfkd's own package; run from another folder or"):
        layout.check_layout()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^samplers: this package of dfkd is missing"):
        layout.check_layout()


@pytest.mark.parametrize("words", [("list", "samplers"), ("compare",), ("distill",), ("teach",), ("evaluate",)])
def test_every_command_looks_first(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    said = run(*words)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("dfkd: samplers: this package of dfkd is missing")
