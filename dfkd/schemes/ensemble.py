"""An ensemble as one teacher: a network that asks its members and combines what they say into logits.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531. The mean of probabilities:
Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? NeurIPS 2021. arXiv:2106.05945.
Changed: nothing; a fourth rule, a KL term for each member, has the gradient of `mean_tempered`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dfkd import models
from dfkd.naming import unknown
from dfkd.types import InputSpec

__all__ = ["REFERENCE", "RULES", "Ensemble", "check_rule", "ensemble"]

RULES = ("mean_prob", "mean_tempered", "mean_logit")
"""mean_prob: ln of the mean of the members' probabilities; softened at a temperature they are p^(1 / temperature).
mean_tempered: so that softened at the stated temperature the answer is the mean of the members' softened answers.
mean_logit: the mean of their logits."""

REFERENCE = "dfkd.schemes.ensemble:ensemble"
"""By what `models.build` finds the builder below, and a weights file names it."""


class Ensemble(nn.Module):
    """members: networks that answer (n, k) logits to the same images; their paths are `members.0`, `members.1`, ...

    rule: one of RULES. temperature: > 0, for mean_tempered alone, and to be that of the loss. Logits are logarithms of
    probabilities that add up to one (at the temperature, if any); with mean_logit they are the mean of the members'.
    """

    def __init__(self, members: Sequence[nn.Module], rule: str = "mean_prob", temperature: float | None = None) -> None:
        super().__init__()
        check_rule(rule, temperature)
        for place, member in enumerate(members):
            if not isinstance(member, nn.Module):
                raise ValueError(f"members[{place}]: expected a torch.nn.Module, found {type(member).__name__}")
        if not members:
            raise ValueError("members: expected at least one, found none")
        self.members = nn.ModuleList(members)
        self.rule, self.temperature = rule, temperature
        if not any(member.training for member in members):
            self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return combined(self._ask(x), self.rule, self.temperature)

    def _ask(self, x: Tensor) -> Tensor:
        """(m, n, k): the answer of each member."""
        answers = []
        for place, member in enumerate(self.members):
            try:
                answers.append(member(x))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # the reason stays as it was said
                raise RuntimeError(f"members.{place} ({type(member).__name__}): {error}") from error
        shapes = [tuple(answer.shape) for answer in answers]
        if len(set(shapes)) > 1:
            found = ", ".join(f"{shape} of members.{place}" for place, shape in enumerate(shapes))
            raise ValueError(f"members: expected logits of the same rows and classes, found {found}")
        return torch.stack(answers).float()

    def extra_repr(self) -> str:
        return f"rule={self.rule}" + ("" if self.temperature is None else f", temperature={self.temperature}")


def combined(logits: Tensor, rule: str, temperature: float | None) -> Tensor:
    """(m, n, k) logits of m members -> (n, k)."""
    if rule == "mean_logit":
        return logits.mean(dim=0)
    tau = 1.0 if temperature is None else temperature
    log_p = (logits / tau).log_softmax(dim=2)
    return tau * (log_p.logsumexp(dim=0) - math.log(len(logits)))


def check_rule(rule: str, temperature: float | None) -> None:
    """ValueError for an unknown rule, and where it has not the temperature that it needs."""
    if rule not in RULES:
        raise unknown("rule", str(rule), RULES)
    if rule != "mean_tempered":
        if temperature is not None:
            raise ValueError(f"temperature: expected none with {rule}, found {temperature!r}")
        return
    is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not is_number or not 0.0 < float(temperature or 0.0) < math.inf:
        raise ValueError(f"temperature: expected a number > 0, that of the loss, with {rule}, found {temperature!r}")


def ensemble(
    spec: InputSpec,
    members: Sequence[Mapping[str, Any]],
    rule: str = "mean_prob",
    temperature: float | None = None,
) -> Ensemble:
    """An ensemble with fresh weights, as a weights file describes it.

    members: {model, options, normalise} for each; normalise is (mean, std) or None.
    """
    made = []
    for place, member in enumerate(members):
        try:
            made.append(_member(spec, **member))
        except (TypeError, ValueError) as error:
            raise ValueError(f"members[{place}]: {error}") from error
    return Ensemble(made, rule, temperature)


def _member(spec: InputSpec, model: str, options: Mapping[str, Any] | None = None, normalise: Any = None) -> nn.Module:
    return models.load_teacher(model, spec, normalise=normalise, **(options or {}))
