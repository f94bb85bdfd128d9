"""The inputs near given images on which a student differs most from the teacher.

Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial Attacks. 2017.
arXiv:1706.06083. Their projected signed ascent from random starts inside an L-infinity ball. Changed: it climbs
KL(teacher || student) in place of a classifier's loss, through both models, and keeps each row's best of all starts and
steps, the image itself included.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from dfkd.fidelity.columns import Column
from dfkd.pixels import to_pixels
from dfkd.problem import Probe
from dfkd.rng import derive
from dfkd.types import whole

__all__ = ["searching", "worst_case", "worst_case_column"]


def worst_case(
    teacher: Probe,
    student: Probe,
    x: Tensor,
    epsilon: float,
    steps: int = 10,
    restarts: int = 2,
    seed: int = 0,
    batch: int = 250,
) -> Tensor:
    """x (n, c, h, w) float pixels -> as many, each within `epsilon` of its own and inside the box, float32.

    epsilon: radius as a fraction of the box, >= 0. steps: ascents per start, each of 2.5 epsilon / steps. Both models
    are asked in evaluation mode and float32, counted under "evaluate". Rows do not influence one another.
    """
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon: expected a number >= 0, found {epsilon!r}")
    for name, value in (("steps", steps), ("restarts", restarts), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, found {value!r}")
    if not x.is_floating_point() or x.ndim != 4:
        raise ValueError(f"x: expected float pixels (n, c, h, w), found {x.dtype} {tuple(x.shape)}")
    for probe in (teacher, student):
        probe.require("input_grad", who="worst_case")
    device, radius = teacher.device, epsilon * teacher.spec.span
    generator = torch.Generator(device=device).manual_seed(derive(seed, "worst_case"))
    found = []
    with searching(teacher, student):
        for part in x.split(batch):
            centre = part.to(device).float()
            best, height = centre, _gap(teacher, student, centre)
            for _ in range(restarts):
                best, height = _climb(teacher, student, centre, best, height, radius, steps, generator)
            found.append(best)
    return torch.cat(found).to(x.device)


def worst_case_column(
    teacher: Probe, student: Probe, column: Column, levels: float, seed: int = 0, steps: int = 10, restarts: int = 2
) -> Column:
    """The column's images searched within `levels` of 255, under the name `worst_case@2`."""
    x = to_pixels(column.x, teacher.spec)
    x = worst_case(teacher, student, x, levels / 255.0, steps, restarts, seed)
    return Column(f"worst_case@{levels:g}", x, column.y, whole(len(x), "eval"), "worst_case")


def _climb(
    teacher: Probe,
    student: Probe,
    centre: Tensor,
    best: Tensor,
    height: Tensor,
    radius: float,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One random start and its ascents -> each row's best so far (n, c, h, w) and its KL (n,)."""
    spec = teacher.spec
    lowest, highest = (centre - radius).clamp_min(spec.low), (centre + radius).clamp_max(spec.high)
    step = 2.5 * radius / steps
    noise = torch.rand(centre.shape, generator=generator, device=centre.device)
    x = (centre + radius * (2.0 * noise - 1.0)).clamp(lowest, highest)
    for _ in range(steps):
        x.requires_grad_(True)
        with torch.enable_grad():
            gap = _divergence(teacher, student, x)
            (slope,) = torch.autograd.grad(gap.sum(), x)  # a sum, so rows do not interact
        best, height = _better(best, height, x.detach(), gap.detach())
        x = (x.detach() + step * slope.sign()).clamp(lowest, highest)
    return _better(best, height, x, _gap(teacher, student, x))


def _divergence(teacher: Probe, student: Probe, x: Tensor) -> Tensor:
    log_p, log_q = (probe(x).logits.log_softmax(dim=1) for probe in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _gap(teacher: Probe, student: Probe, x: Tensor) -> Tensor:
    with torch.no_grad():
        return _divergence(teacher, student, x)


def _better(best: Tensor, height: Tensor, x: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    higher = gap > height
    return torch.where(higher[:, None, None, None], x, best), torch.where(higher, gap, height)


@contextmanager
def searching(*probes: Probe) -> Iterator[None]:
    """Inside, the models are frozen, answer in float32 and count under "evaluate"."""
    precisions = [probe.precision for probe in probes]
    with ExitStack() as stack:
        for probe in probes:
            stack.enter_context(probe.frozen())
            stack.enter_context(probe.counting("evaluate"))
            probe.precision = "float32"
        try:
            yield
        finally:
            for probe, precision in zip(probes, precisions, strict=True):
                probe.precision = precision
