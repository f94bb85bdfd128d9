"""What recipes for inputs share: terms, the objective they add up to, the views they see, the loop that descends."""

from .activation import Activation
from .batchnorm import (
    AUTO,
    BatchNormGauss,
    BatchNormNorm,
    BatchNormWeight,
    MovingBatchNorm,
    batchnorm_distance,
    batchnorm_term,
    noise_start,
)
from .classes import Balance, OneHot, equally
from .contrastive import Contrast
from .critic import Patches
from .descend import Best, descend
from .disagreement import Disagreement, Divergence, Variant, disagreement
from .entropy import Entropy
from .memory import Memory
from .networks import DcganNetwork, Network, TrunkNetwork, built
from .online import OnlineGenerator, Rate, Reuse, enough_rows, sampling
from .priors import PixelNorm, Smoothness, TotalVariation, Variation, row_variation
from .reset import Meta, MetaStep, due, redraw, redraw_first, renew
from .rounds import Recipe, Rounds, banked, unfound
from .terms import Learner, Look, Objective, Term
from .views import View, Views, cropped, identity, jitter, resized
from .worth import Modulated, Reward

__all__ = [
    "AUTO",
    "Activation",
    "Balance",
    "BatchNormGauss",
    "BatchNormNorm",
    "BatchNormWeight",
    "Best",
    "Contrast",
    "DcganNetwork",
    "Disagreement",
    "Divergence",
    "Entropy",
    "Learner",
    "Look",
    "Memory",
    "Meta",
    "MetaStep",
    "Modulated",
    "MovingBatchNorm",
    "Network",
    "Objective",
    "OneHot",
    "OnlineGenerator",
    "Patches",
    "PixelNorm",
    "Rate",
    "Recipe",
    "Reuse",
    "Reward",
    "Rounds",
    "Smoothness",
    "Term",
    "TotalVariation",
    "TrunkNetwork",
    "Variant",
    "Variation",
    "View",
    "Views",
    "banked",
    "batchnorm_distance",
    "batchnorm_term",
    "built",
    "cropped",
    "descend",
    "disagreement",
    "due",
    "enough_rows",
    "equally",
    "identity",
    "jitter",
    "noise_start",
    "redraw",
    "redraw_first",
    "renew",
    "resized",
    "row_variation",
    "sampling",
    "unfound",
]
