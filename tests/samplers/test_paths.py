"""Settings that name a file or a folder take pathlib's paths for the text that they are."""

from pathlib import Path
from typing import Any

import pytest

from samplers import GAN, NAYER, Diffusion, MosaicKD, OneImage, OutOfDomain, Real


@pytest.mark.parametrize(
    ("kind", "setting", "path"),
    [
        (Real, "data", "folder"),
        (OutOfDomain, "data", "folder"),
        (MosaicKD, "data", "folder"),
        (OneImage, "image", "one.png"),
        (GAN, "file", "generator.safetensors"),
        (Diffusion, "folder", "pipeline"),
        (NAYER, "embeddings", "words.npy"),
    ],
)
def test_a_path_is_its_text(kind: Any, setting: str, path: str) -> None:
    made = kind(**{setting: Path(path)})
    assert made == kind(**{setting: path})
    assert getattr(made, setting) == path
