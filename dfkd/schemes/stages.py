"""Distillation in stages: each student, when it is done, is the frozen teacher of the next.

Equal students are born-again generations: Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born-Again Neural Networks.
ICML 2018. arXiv:1805.04770. Students between the teacher's size and the last one's are teacher assistants: Mirzadeh,
Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh: Improved Knowledge Distillation via Teacher Assistant. AAAI 2020.
arXiv:1902.03393. Changed: labels are not needed, as everywhere here, and all stages have the same sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd.files import make_folder
from dfkd.interfaces import Sampler
from dfkd.problem import Probe, Problem
from dfkd.rng import derive
from dfkd.schemes.offline import Distilled, Student, distill
from dfkd.types import InputSpec, as_device

__all__ = ["Chain", "chain"]


@dataclass(frozen=True)
class Chain:
    """stages: what each left, in order; fewer than there were students where the last of them did not end as `ok`."""

    stages: tuple[Distilled, ...]

    @property
    def last(self) -> Distilled:
        return self.stages[-1]

    @property
    def student(self) -> nn.Module:
        """Of the last stage."""
        return self.last.student

    def against_first(self, stage: int = -1) -> Problem:
        """The first teacher beside the student of this stage, where that of the stage was one in between."""
        return replace(self.stages[stage].problem, teacher=self.stages[0].problem.teacher)


def chain(
    teacher: nn.Module,
    students: Sequence[Student],
    sampler: Sampler,
    *,
    spec: InputSpec,
    seed: int = 0,
    device: str | torch.device | None = None,
    folder: Path | None = None,
    identity: str = "",
    **settings: Any,
) -> Chain:
    """Distils the first student from the teacher, and each other from the one before it.

    `[student] * 3` are three generations, each from a random start of its own; sizes need not fall. seed: of the first
    stage, from which those of the others are derived. folder: where each stage has a checkpoint, which stays, so that a
    chain that was stopped goes on from where it was. settings: as for `distill`, the same in all stages.
    """
    if not students:
        raise ValueError("students: expected at least one, found none")
    if folder is not None:
        make_folder(folder)
    where, stages = as_device(device), list[Distilled]()
    for number, student in enumerate(students):
        teaching = stages[-1].student if stages else teacher
        # a student that was trained anew in between is another teacher, and what it began to teach is of no use
        name = f"{identity}/stage {number} of {len(students)}/{Probe(teaching, spec, where).digest}"
        stage = distill(
            teaching,
            student,
            sampler,
            spec=spec,
            seed=derive(seed, "stage", number) if number else seed,
            device=where,
            checkpoint=None if folder is None else folder / f"stage-{number}.checkpoint",
            identity=name,
            **settings,
        )
        stages.append(stage)
        if stage.training.status != "ok":
            break  # nobody learns from it
    return Chain(tuple(stages))
