"""The README's picture: a file of the right kind, the same each time, whatever the names hold."""

from pathlib import Path

import pytest

from dfkd.report import matrix_picture


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_draws_nasty_names(folder: Path, suffix: str, start: bytes) -> None:
    path = matrix_picture(folder, folder / f"matrix{suffix}")
    assert path.read_bytes().startswith(start)
    assert matrix_picture(folder, folder / f"again{suffix}").read_bytes() == path.read_bytes()


def test_refuses_other_files_and_metrics(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.png or \.svg"):
        matrix_picture(folder, folder / "matrix.gif")
    with pytest.raises(ValueError, match="metric: expected one that"):
        matrix_picture(folder, folder / "matrix.png", metric="taste")
