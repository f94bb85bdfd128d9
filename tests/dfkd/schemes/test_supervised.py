"""A teacher from labels: where it starts, beside the students of its seed."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd import Budget, models
from dfkd.schemes.offline import make_student
from dfkd.schemes.supervised import teach
from dfkd.types import InputSpec
from samplers import Real

SPEC = InputSpec((1, 8, 8), 4)


def test_a_teacher_and_a_student_of_one_seed_start_apart(quadrants: Path) -> None:
    """Else they agree for a reason that has nothing to do with what the student was shown."""
    started: list[Tensor] = []

    def fresh() -> nn.Module:
        module = models.build("digits_cnn", SPEC, width=3)
        started.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
        return module

    for seed in (0, 0, 1):
        teach(fresh, Real(data=str(quadrants)), spec=SPEC, budget=Budget(steps=1), seed=seed)
    make_student(fresh, SPEC, seed=0)
    teacher, again, other, student = started
    assert torch.equal(teacher, again)
    assert not torch.allclose(teacher, other)
    assert not torch.allclose(teacher, student)
