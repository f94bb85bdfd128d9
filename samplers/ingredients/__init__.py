"""What recipes for inputs share: terms, the objective they add up to, the views they see, the loop that descends."""

from .activation import Activation
from .batchnorm import (
    AUTO,
    BatchNormGauss,
    BatchNormNorm,
    BatchNormWeight,
    batchnorm_distance,
    batchnorm_term,
    noise_start,
)
from .classes import Balance, OneHot
from .descend import Best, descend
from .disagreement import Disagreement, Divergence, Variant, disagreement
from .online import DcganNetwork, Network, OnlineGenerator, Rate, Reuse, TrunkNetwork, enough_rows, sampling
from .priors import PixelNorm, Smoothness, TotalVariation, Variation, row_variation
from .terms import Learner, Look, Objective, Term
from .views import View, Views, identity, jitter

__all__ = [
    "AUTO",
    "Activation",
    "Balance",
    "BatchNormGauss",
    "BatchNormNorm",
    "BatchNormWeight",
    "Best",
    "DcganNetwork",
    "Disagreement",
    "Divergence",
    "Learner",
    "Look",
    "Network",
    "Objective",
    "OneHot",
    "OnlineGenerator",
    "PixelNorm",
    "Rate",
    "Reuse",
    "Smoothness",
    "Term",
    "TotalVariation",
    "TrunkNetwork",
    "Variant",
    "Variation",
    "View",
    "Views",
    "batchnorm_distance",
    "batchnorm_term",
    "descend",
    "disagreement",
    "enough_rows",
    "identity",
    "jitter",
    "noise_start",
    "row_variation",
    "sampling",
]
