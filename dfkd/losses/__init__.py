"""What the student minimises: one value per row from each loss, weighed and summed by `combine`."""

from dfkd.losses.combine import Evaluated, Objective, combine
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
    "Evaluated",
    "HardLabel",
    "JensenShannon",
    "LabelCrossEntropy",
    "LogitL1",
    "LogitMSE",
    "Objective",
    "ReverseKL",
    "combine",
    "js_nats",
    "kl_nats",
    "reverse_kl_nats",
]
