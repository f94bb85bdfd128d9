"""The explicit tables: what there is by name, and where it is defined. Nothing is imported until it is asked for."""

from importlib import import_module
from typing import Any

from dfkd.naming import unknown

__all__ = ["GENERATORS", "LOSSES", "SAMPLERS", "SCHEMES", "find"]

SAMPLERS = {
    "real": "samplers.real:Real",
    "uniform": "samplers.noise:Uniform",
    "gaussian": "samplers.noise:Gaussian",
    "smoothed": "samplers.noise:Smoothed",
    "dead_leaves": "samplers.dead_leaves:DeadLeaves",
    "spectrum": "samplers.spectrum:Spectrum",
    "shader": "samplers.shader:Shader",
    "one_image": "samplers.one_image:OneImage",
    "out_of_domain": "samplers.out_of_domain:OutOfDomain",
    "diffusion": "samplers.diffusion:Diffusion",
    "mixup": "samplers.mixup:Mixup",
    "cutmix": "samplers.cutmix:CutMix",
    "deep_inversion": "samplers.deep_inversion:DeepInversion",
    "generative": "samplers.generative:Generative",
    "dafl": "samplers.dafl:DAFL",
    "dfad": "samplers.dfad:DFAD",
    "zskt": "samplers.zskt:ZSKT",
    "dfq": "samplers.dfq:DFQ",
    "mad": "samplers.mad:MAD",
    "cmi": "samplers.cmi:CMI",
    "fast_dfkd": "samplers.fast_dfkd:FastDFKD",
    "nayer": "samplers.nayer:NAYER",
    "sre2l": "samplers.sre2l:SRe2L",
    "pre_dfkd": "samplers.pre_dfkd:PreDFKD",
    "ssd_kd": "samplers.ssd_kd:SSDKD",
    "spaceshipnet": "samplers.spaceshipnet:SpaceshipNet",
    "mosaic_kd": "samplers.mosaic_kd:MosaicKD",
    "gan": "samplers.gan:GAN",
    "adversarial": "samplers.adversarial:Adversarial",
    "energy": "samplers.energy:Energy",
    "mixture": "samplers.mixture:Mixture",
    "robust": "samplers.robust:Robust",
    "pooled": "samplers.pooled:Pooled",
    "prioritised": "samplers.prioritised:Prioritised",
    "augmented": "samplers.augmented:Augmented",
    "balanced": "samplers.balanced:Balanced",
}

LOSSES = {
    "kl": "dfkd.losses.response:KL",
    "reverse_kl": "dfkd.losses.response:ReverseKL",
    "js": "dfkd.losses.response:JensenShannon",
    "logit_mse": "dfkd.losses.response:LogitMSE",
    "logit_l1": "dfkd.losses.response:LogitL1",
    "logit_huber": "dfkd.losses.response:LogitHuber",
    "hard_label": "dfkd.losses.response:HardLabel",
    "sampled_label": "dfkd.losses.sampled:SampledLabel",
    "label_ce": "dfkd.losses.response:LabelCrossEntropy",
    "dkd": "dfkd.losses.decoupled:DKD",
    "dist": "dfkd.losses.dist:DIST",
    "features": "dfkd.losses.features:Features",
    "attention": "dfkd.losses.attention:Attention",
    "sp": "dfkd.losses.relations:SP",
    "pkt": "dfkd.losses.relations:PKT",
    "cc": "dfkd.losses.relations:CC",
    "cka": "dfkd.losses.relations:CKA",
    "fkd": "dfkd.losses.relations:FKD",
    "rkd_distance": "dfkd.losses.rkd:RKDDistance",
    "rkd_angle": "dfkd.losses.rkd:RKDAngle",
    "relation": "dfkd.losses.relations:Relation",
    "jacobian": "dfkd.losses.derivatives:Jacobian",
    "class_gradient": "dfkd.losses.derivatives:ClassGradient",
    "peers": "dfkd.losses.peers:Peers",
}

SCHEMES = {
    "mutual": "dfkd.schemes.mutual:Mutual",
    "one": "dfkd.schemes.one:ONE",
    "deep_to_shallow": "dfkd.schemes.exits:DeepToShallow",
    "mean_teacher": "dfkd.schemes.mean_teacher:MeanTeacher",
}

GENERATORS = {
    "sn_gan": "generators.sn_gan_training:SNGAN",
    "diffusion": "generators.diffusion:Diffusion",
}


def find(what: str, name: str, table: dict[str, str]) -> Any:
    """The object behind a name of a table; ValueError with the nearest name where it is not in it."""
    if name not in table:
        raise unknown(what, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
