"""Distributions over inputs: one recipe per file, each a frozen dataclass of settings."""

from .adversarial import Adversarial
from .augmented import Augmented
from .balanced import Balanced
from .cutmix import CutMix
from .deep_inversion import DeepInversion
from .generative import Generative
from .mixture import Mixture
from .mixup import Mixup
from .noise import Gaussian, Smoothed, Uniform
from .pooled import Pooled
from .real import Real

__all__ = [
    "Adversarial",
    "Augmented",
    "Balanced",
    "CutMix",
    "DeepInversion",
    "Gaussian",
    "Generative",
    "Mixture",
    "Mixup",
    "Pooled",
    "Real",
    "Smoothed",
    "Uniform",
]
