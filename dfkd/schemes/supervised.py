"""A teacher from labels: the loop of distillation with the labels as its only objective.

No paper: ordinary supervised training.
"""

import copy
from pathlib import Path

import torch
from torch import nn

from dfkd.engine import Budget, Optimiser, Training, train
from dfkd.interfaces import Sampler, StudentFactory
from dfkd.losses import LabelCrossEntropy, combine
from dfkd.rng import derive
from dfkd.schemes.offline import make_problem, make_student
from dfkd.types import InputSpec

__all__ = ["teach"]


def teach(
    model: "str | StudentFactory | nn.Module",
    sampler: Sampler,
    *,
    spec: InputSpec,
    budget: Budget | None = None,
    optimiser: Optimiser | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: str | None = None,
    compile: bool = False,
    checkpoint: Path | None = None,
    identity: str = "",
    show_progress: bool = False,
) -> tuple[nn.Module, Training]:
    """Trains a model on a sampler's labelled rows; it comes back in evaluation mode.

    Its initial weights and the order of its rows are not those of a student of the same network and seed: one that
    starts where its teacher started agrees with it more than others do (Stanton et al. 2021, arXiv 2106.05945, sec. 6).
    """
    seed = derive(seed, "teacher")
    module = make_student(model, spec, seed)
    # the place of the teacher is taken by the model as it was: no loss here asks it
    problem = make_problem(copy.deepcopy(module), module, spec, seed=seed, device=device, precision=precision)
    training = train(
        problem,
        sampler,
        combine({"label_ce": (1.0, LabelCrossEntropy())}),
        budget or Budget(steps=2000),
        optimiser or Optimiser(),
        seed,
        checkpoint=checkpoint,
        identity=identity,
        compile=compile,
        show_progress=show_progress,
    )
    return module.eval(), training
