"""A student that starts between a fresh network and its teacher.

Stanton, Izmailov, Kirichenko, Alemi, Wilson: Does Knowledge Distillation Really Work? NeurIPS 2021. arXiv:2106.05945,
their figure 6b; `loc_param` in their code is 1 - share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.interfaces import StudentFactory

__all__ = ["FromTeacher", "blend", "moves_statistics"]


@dataclass(frozen=True)
class FromTeacher:
    """A student with share x teacher + (1 - share) x fresh weights: wherever a student is asked for.

    student: a name, a factory or a module, of the teacher's architecture. share: in [0, 1]; at 1 it is the teacher, bit
    for bit. What BatchNorm has stored is blended too, which fits no network in between: `distill` estimates it anew on
    the first draws of the sampler before the first step.
    """

    student: "str | StudentFactory | nn.Module"
    share: float

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0.0 <= self.share <= 1.0:
            raise ValueError(f"from_teacher: expected a number from 0 to 1, found {self.share!r}")


def blend(student: nn.Module, teacher: nn.Module, share: float) -> nn.Module:
    """The student, changed in place; ValueError naming the first key in which the two differ."""
    ours, theirs = student.state_dict(), teacher.state_dict()
    _require_alike(ours, theirs)
    blended = {}
    for key, value in ours.items():
        other = theirs[key].to(value.device)
        if share in (0.0, 1.0) or not value.is_floating_point():
            blended[key] = other if share == 1.0 else value
        else:
            blended[key] = torch.lerp(value, other.to(value.dtype), share)
    student.load_state_dict(blended)
    return student


def moves_statistics(student: nn.Module, share: float) -> bool:
    """Whether it begins with BatchNorm statistics that are those of no network."""
    stored = (isinstance(part, _BatchNorm) and part.running_mean is not None for part in student.modules())
    return 0.0 < share < 1.0 and any(stored)


def _require_alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        shapes = [tuple(weights[key].shape) if key in weights else None for weights in (ours, theirs)]
        if shapes[0] != shapes[1]:
            mine, other = (str(shape) if shape is not None else "nothing" for shape in shapes)
            raise ValueError(
                f"from_teacher: expected a student of the teacher's architecture, found {mine} of the student and "
                f"{other} of the teacher at {key!r}"
            )
