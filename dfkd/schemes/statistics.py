"""BatchNorm statistics of a student that begins between two networks, estimated on what it is about to be trained on.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson: Averaging Weights Leads to Wider Optima and Better Generalization. 2018.
arXiv:1803.05407: weights in between are another network, whose layers are given other things than either end stored.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from dfkd.fidelity.recalibrate import recalibrated
from dfkd.interfaces import Sampler
from dfkd.problem import Problem
from dfkd.schemes.mean_teacher import Averaged
from dfkd.schemes.mutual import Cohort

__all__ = ["ROWS", "estimate_statistics"]

ROWS: Final = 512  # at least, in whole batches


def estimate_statistics(problem: Problem, sampler: Sampler, state: Any, batch: int) -> None:
    """Stores in the student what its BatchNorm layers are given in evaluation mode on the sampler's next draws.

    They are draws of the run, of `batch` rows each, and counted; the student learns nothing else from them. Of a module
    that holds several students each is done by itself.
    """
    x = torch.cat([sampler.draw(state, problem, batch).x for _ in range(-(-ROWS // batch))])
    if not bool(x.isfinite().all()):  # sync: before the first step, which will say so
        return
    for network in _networks(problem.student.module):
        network.load_state_dict(recalibrated(network, x, problem.spec).state_dict())


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """Those that answer alone: asked in evaluation mode the module leaves all but one of them out."""
    if isinstance(module, Cohort):
        yield from module.members
    elif isinstance(module, Averaged):
        yield from (module.online, module.average)
    else:
        yield module
