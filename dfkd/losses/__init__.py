"""What the student minimises: one value per row from each loss, weighed and summed by `combine`."""

from dfkd.losses.attention import Attention, attention_distance, attention_map
from dfkd.losses.combine import Evaluated, Objective, combine
from dfkd.losses.derivatives import (
    ClassGradient,
    Jacobian,
    all_directions,
    class_gradient_distance,
    jacobian_distance,
)
from dfkd.losses.features import Features, feature_distance
from dfkd.losses.response import (
    KL,
    HardLabel,
    JensenShannon,
    LabelCrossEntropy,
    LogitL1,
    LogitMSE,
    ReverseKL,
    js_nats,
    kl_nats,
    reverse_kl_nats,
)

__all__ = [
    "KL",
    "Attention",
    "ClassGradient",
    "Evaluated",
    "Features",
    "HardLabel",
    "Jacobian",
    "JensenShannon",
    "LabelCrossEntropy",
    "LogitL1",
    "LogitMSE",
    "Objective",
    "ReverseKL",
    "all_directions",
    "attention_distance",
    "attention_map",
    "class_gradient_distance",
    "combine",
    "feature_distance",
    "jacobian_distance",
    "js_nats",
    "kl_nats",
    "reverse_kl_nats",
]
