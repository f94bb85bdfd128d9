"""Networks by name, a user's own by reference, and their weights; all take pixels."""

from .build import MODELS, SUMMARIES, build, reference_of
from .loading import load, load_teacher, read_card, read_spec, save
from .normalise import NORMALISATIONS, Normalised

__all__ = [
    "MODELS",
    "NORMALISATIONS",
    "SUMMARIES",
    "Normalised",
    "build",
    "load",
    "load_teacher",
    "read_card",
    "read_spec",
    "reference_of",
    "save",
]
