"""What the student minimises: one value per row from each loss, weighed and summed by `combine`."""

from dfkd.losses.attention import Attention, attention_distance, attention_map
from dfkd.losses.combine import Evaluated, Objective, combine
from dfkd.losses.decoupled import DKD, decoupled_nats
from dfkd.losses.derivatives import (
    ClassGradient,
    Jacobian,
    all_directions,
    class_gradient_distance,
    jacobian_distance,
)
from dfkd.losses.dist import DIST, pearson_distances
from dfkd.losses.features import Features, feature_distance
from dfkd.losses.kernels import Family, relate, relation
from dfkd.losses.parts import At, OfSources
from dfkd.losses.peers import Peers
from dfkd.losses.relations import CC, CKA, FKD, PKT, SP, Relation, cc, cka, fkd, pkt, sp
from dfkd.losses.response import (
    KL,
    HardLabel,
    JensenShannon,
    LabelCrossEntropy,
    LogitHuber,
    LogitL1,
    LogitMSE,
    ReverseKL,
    js_nats,
    kl_nats,
    reverse_kl_nats,
    standardised,
)
from dfkd.losses.rkd import RKDAngle, RKDDistance, rkd_angle, rkd_distance
from dfkd.losses.sampled import SampledLabel, drawn_labels

__all__ = [
    "CC",
    "CKA",
    "DIST",
    "DKD",
    "FKD",
    "KL",
    "PKT",
    "SP",
    "At",
    "Attention",
    "ClassGradient",
    "Evaluated",
    "Family",
    "Features",
    "HardLabel",
    "Jacobian",
    "JensenShannon",
    "LabelCrossEntropy",
    "LogitHuber",
    "LogitL1",
    "LogitMSE",
    "Objective",
    "OfSources",
    "Peers",
    "RKDAngle",
    "RKDDistance",
    "Relation",
    "ReverseKL",
    "SampledLabel",
    "all_directions",
    "attention_distance",
    "attention_map",
    "cc",
    "cka",
    "class_gradient_distance",
    "combine",
    "decoupled_nats",
    "drawn_labels",
    "feature_distance",
    "fkd",
    "jacobian_distance",
    "js_nats",
    "kl_nats",
    "pearson_distances",
    "pkt",
    "relate",
    "relation",
    "reverse_kl_nats",
    "rkd_angle",
    "rkd_distance",
    "sp",
    "standardised",
]
