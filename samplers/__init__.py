"""Distributions over inputs: one recipe per file, each a frozen dataclass of settings."""

from .adversarial import Adversarial
from .augmented import Augmented
from .balanced import Balanced
from .cutmix import CutMix
from .dead_leaves import DeadLeaves
from .deep_inversion import DeepInversion
from .energy import Energy
from .fast_dfkd import FastDFKD
from .generative import Generative
from .mixture import Mixture
from .mixup import Mixup
from .noise import Gaussian, Smoothed, Uniform
from .one_image import OneImage
from .out_of_domain import OutOfDomain
from .pooled import Pooled
from .prioritised import Prioritised
from .real import Real
from .robust import Robust
from .shader import Shader
from .spectrum import Spectrum

__all__ = [
    "Adversarial",
    "Augmented",
    "Balanced",
    "CutMix",
    "DeadLeaves",
    "DeepInversion",
    "Energy",
    "FastDFKD",
    "Gaussian",
    "Generative",
    "Mixture",
    "Mixup",
    "OneImage",
    "OutOfDomain",
    "Pooled",
    "Prioritised",
    "Real",
    "Robust",
    "Shader",
    "Smoothed",
    "Spectrum",
    "Uniform",
]
