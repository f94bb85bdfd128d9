"""Distributions over inputs: one recipe per file, each a frozen dataclass of settings."""

from .adversarial import Adversarial
from .augmented import Augmented
from .balanced import Balanced
from .cmi import CMI
from .cutmix import CutMix
from .dafl import DAFL
from .dead_leaves import DeadLeaves
from .deep_inversion import DeepInversion
from .dfad import DFAD
from .dfq import DFQ
from .diffusion import Diffusion
from .energy import Energy
from .fast_dfkd import FastDFKD
from .gan import GAN
from .generative import Generative
from .mad import MAD
from .mixture import Mixture
from .mixup import Mixup
from .mosaic_kd import MosaicKD
from .nayer import NAYER
from .noise import Gaussian, Smoothed, Uniform
from .one_image import OneImage
from .out_of_domain import OutOfDomain
from .pooled import Pooled
from .pre_dfkd import PreDFKD
from .prioritised import Prioritised
from .real import Real
from .robust import Robust
from .shader import Shader
from .spaceshipnet import SpaceshipNet
from .spectrum import Spectrum
from .sre2l import SRe2L
from .ssd_kd import SSDKD
from .zskt import ZSKT

__all__ = [
    "CMI",
    "DAFL",
    "DFAD",
    "DFQ",
    "GAN",
    "MAD",
    "NAYER",
    "SSDKD",
    "ZSKT",
    "Adversarial",
    "Augmented",
    "Balanced",
    "CutMix",
    "DeadLeaves",
    "DeepInversion",
    "Diffusion",
    "Energy",
    "FastDFKD",
    "Gaussian",
    "Generative",
    "Mixture",
    "Mixup",
    "MosaicKD",
    "OneImage",
    "OutOfDomain",
    "Pooled",
    "PreDFKD",
    "Prioritised",
    "Real",
    "Robust",
    "SRe2L",
    "Shader",
    "Smoothed",
    "SpaceshipNet",
    "Spectrum",
    "Uniform",
]
