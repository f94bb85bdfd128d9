"""What recipes for inputs share: terms, the objective they add up to, the views they see, the loop that descends."""

from .batchnorm import AUTO, BatchNormNorm, BatchNormWeight, batchnorm_distance, batchnorm_term, noise_start
from .classes import Balance, OneHot
from .descend import Best, descend
from .disagreement import Disagreement, Divergence, disagreement
from .priors import PixelNorm, TotalVariation, Variation, row_variation
from .terms import Learner, Look, Objective, Term
from .views import View, Views, identity, jitter

__all__ = [
    "AUTO",
    "Balance",
    "BatchNormNorm",
    "BatchNormWeight",
    "Best",
    "Disagreement",
    "Divergence",
    "Learner",
    "Look",
    "Objective",
    "OneHot",
    "PixelNorm",
    "Term",
    "TotalVariation",
    "Variation",
    "View",
    "Views",
    "batchnorm_distance",
    "batchnorm_term",
    "descend",
    "disagreement",
    "identity",
    "jitter",
    "noise_start",
    "row_variation",
]
