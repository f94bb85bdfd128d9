"""Images from the density that the teacher's logits imply, moved by Langevin steps in a buffer that persists.

Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi, Swersky: Your Classifier Is Secretly an Energy Based Model and You Should
Treat It Like One. 2020. arXiv:1912.03263. Changed: an ordinary classifier is no density over all pixels, so chains stay
in the box, whose walls reflect them, and the BatchNorm distance and total variation may join the energy; a chain keeps
its class; steps may be accepted or refused, the Metropolis-adjusted Langevin algorithm of Roberts, Tweedie 1996.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dfkd.problem import Problem
from dfkd.rng import Stream, derive
from dfkd.types import Batch, BatchNormMode, InputSpec, whole

from .balanced import rank_in_class
from .checks import a_labelling, at_least, between, positive, some_rows, true_or_false, weight_or_auto, whole_at_least
from .ingredients import BatchNormWeight, Look, Objective, batchnorm_term, row_variation
from .state import State

Ask = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (n, c, h, w) -> energies of the rows (n,), and the slope of the energy in x."""


@dataclass(frozen=True)
class Energy:
    """E(x) = -logsumexp of the logits, or minus the logit of the row's class, and what is added to it.

    steps: Langevin steps for each draw, >= 1. step: their length, in fractions of the box, > 0. noise: standard
    deviation added at each, in fractions of the box, >= 0. The density is exp(-E / temperature) with temperature
    noise^2 / (2 step): 5e-5 as published, which stays near the lowest energies; 1 is the teacher's own density.
    buffer: chains that are kept, >= batch. restart: share of the chains drawn that begin anew at uniform noise, 0 to 1.
    batch: most chains that move together, >= 1. class_conditional: whether a row has a class, drawn equally often, and
    its logit is the energy. metropolis: whether a step may be refused, so that the density is exact at any length of
    the steps, not only for short ones; it needs noise > 0. batchnorm: weight of the distance to the teacher's stored
    statistics, >= 0, or `auto` for a weight scaled to the teacher; it belongs to the batch and not to a row, so it does
    not go with metropolis. total_variation: weight of differences between neighbours, >= 0. labelling: the teacher's
    BatchNorm mode for the images, `eval` or `batch`.
    The published steps are for a network trained as a density. For an ordinary one they are long: its logits change too
    much on the way, and metropolis then refuses every step (`acceptance` 0: the images are the noise they began as). On
    a small net for digits, step 0.001 and noise 0.01, temperature 0.05, had 6 of 7 accepted. Chains that begin anew are
    not of the density yet: its moments are exact for restart 0 and a buffer drawn often enough.
    info: mean `energy` without what is added, `class_entropy` in nats of the classes predicted, `acceptance`.
    """

    steps: int = 20
    # published for pixels in [-1, 1]: step 1 and noise 0.01. In half the unit a slope is doubled and a step halved, so
    # the step is a quarter and the noise a half; the temperature is the same
    step: float = 1 / 4
    noise: float = 0.01 / 2
    buffer: int = 10_000
    restart: float = 0.05
    batch: int = 256
    class_conditional: bool = False
    metropolis: bool = False
    batchnorm: BatchNormWeight = 0.0
    total_variation: float = 0.0
    labelling: BatchNormMode = "eval"
    name: ClassVar[str] = "energy"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    uses_student: ClassVar[bool] = True  # never asked, but where the chains are depends on how often they were drawn

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "steps", "batch")
        whole_at_least(self, self.batch, "buffer")
        positive(self, "step")
        at_least(self, 0.0, "noise", "total_variation")
        between(self, 0.0, 1.0, "restart")
        weight_or_auto(self, "batchnorm")
        a_labelling(self.labelling)
        true_or_false(self, "class_conditional", "metropolis")
        if self.metropolis and self.noise == 0.0:
            raise ValueError("noise: expected a number > 0 with metropolis, found 0.0")
        if self.metropolis and self.batchnorm != 0.0:
            raise ValueError(
                f"batchnorm: expected 0 with metropolis, which accepts rows one by one and needs an energy for each, "
                f"found {self.batchnorm!r}; total_variation has one"
            )

    @property
    def temperature(self) -> float:
        """Of the density that short steps, or metropolis, leave as it is."""
        return self.noise**2 / (2.0 * self.step)

    @property
    def of_the_batch(self) -> Objective:
        """What the energy has that is no sum over rows; as a mean, like every objective."""
        return Objective((batchnorm_term(self.batchnorm),))

    def init(self, problem: Problem, seed: int) -> State:
        """Chains at uniform noise; the class of a chain is its place modulo k. They are float32, not bytes: steps of
        less than a level would be lost, and rounding is a move that metropolis does not know of."""
        spec, k = problem.spec, problem.spec.num_classes
        if self.class_conditional and self.buffer < k:
            raise ValueError(
                f"{self.name}: buffer: expected at least {k} chains, one for each class, found {self.buffer}; "
                "class_conditional false takes fewer"
            )
        terms = self.of_the_batch.init(problem, derive(seed, "terms"), who=self.name)
        rng = torch.Generator(problem.device).manual_seed(derive(seed, "chains"))
        chains = torch.empty(self.buffer, *spec.shape, device=problem.device)
        chains.uniform_(spec.low, spec.high, generator=rng)
        return State(stream=Stream(seed, problem.device), terms=terms, chains=chains)

    def draw(self, state: State, problem: Problem, n: int, learn: bool = True) -> Batch:
        some_rows(n)
        rng = state.stream.advance()
        groups, drawn, accepted = list(self._groups(problem, n, rng)), [], []
        for places in groups:
            x, share = self._moved(state, problem, places, rng)
            if learn:
                state.chains.index_copy_(0, places, x)
            drawn.append(x)
            accepted.append(share)
        target = torch.cat(groups)[:n] % problem.spec.num_classes if self.class_conditional else None
        batch = Batch(torch.cat(drawn)[:n], target=target, labelling=whole(n, self.labelling))
        outputs = problem.label(batch)  # asked for the log, so it may as well be the label
        info = {"energy": implied(outputs.logits, target).mean(), "class_entropy": class_entropy(outputs.logits)}
        if self.metropolis:
            info["acceptance"] = torch.stack(accepted).mean()
        return replace(batch, teacher=outputs, info=info)

    def observe(self, state: State, batch: Batch, loss: Tensor) -> None:
        del state, batch, loss

    def _groups(self, problem: Problem, n: int, rng: torch.Generator) -> Iterator[Tensor]:
        """Places of the chains that move together, n or more in all: none twice before each came once."""
        left = n
        while left > 0:
            order = torch.randperm(self.buffer, generator=rng, device=problem.device)
            if self.class_conditional:  # one of each class, in random order, then another of each
                k = problem.spec.num_classes
                order = order[rank_in_class(order % k, k).argsort(stable=True)]
            groups = order.split(self.batch)
            if self.of_the_batch.terms:  # statistics are those of a whole batch, however few rows are asked for
                groups = groups[: self.buffer // self.batch]
            for group in groups:
                if left > 0:
                    yield group if self.of_the_batch.terms else group[:left]
                left -= len(group)

    def _moved(self, state: State, problem: Problem, places: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """These chains after one round of steps, some of them begun anew; the share of steps that was accepted."""
        spec, objective = problem.spec, self.of_the_batch
        x = state.chains[places]
        anew = torch.rand(len(x), generator=rng, device=x.device) < self.restart
        uniform = torch.empty_like(x).uniform_(spec.low, spec.high, generator=rng)
        x = torch.where(anew[:, None, None, None], uniform, x)
        target = places % spec.num_classes if self.class_conditional else None
        with objective.watching(problem) as look:

            def ask(x: Tensor) -> tuple[Tensor, Tensor]:
                return self._asked(look, objective, state.terms, x, target)

            if self.metropolis:
                return self._adjusted(ask, x, spec, rng)
            rate, std = self.step * spec.span**2, self.noise * spec.span
            for _ in range(self.steps):
                x, _ = reflected(x - rate * ask(x)[1] + std * _normal(x, rng), spec)
        return x, torch.ones((), device=x.device)

    def _asked(
        self, look: Look, objective: Objective, terms: list[object], x: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        views = look(x, target)
        rows = implied(views.teacher.logits, target)
        if self.total_variation:
            rows = rows + self.total_variation * row_variation(x, views.spec.span)
        # a sum, so that rows do not slow each other down; a mean over rows counts as many times as there are rows
        (slope,) = torch.autograd.grad(rows.sum() + len(x) * objective(terms, views), x)
        return rows.detach(), slope

    def _adjusted(self, ask: Ask, x: Tensor, spec: InputSpec, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Metropolis-adjusted steps in a box of mirrors.

        The energy goes on beyond the walls as its mirror image, so a proposal z has a normal density wherever it falls,
        and y, where it is inside, has the energy of z. From y the mirrored way leads back to x, at the density with
        which a step from z leads to x: path by path the flow in both directions is equal, so the density is kept.
        """
        rate, std = self.step * spec.span**2, self.noise * spec.span
        energy, slope = ask(x)
        accepted = torch.zeros((), device=x.device)
        for _ in range(self.steps):
            noise = _normal(x, rng)
            z = x - rate * slope + std * noise
            y, sign = reflected(z, spec)
            energy_y, slope_y = ask(y)
            back = (x - z + rate * sign * slope_y) / std  # the noise that leads from z to x
            gain = (energy - energy_y) / self.temperature + 0.5 * (noise**2 - back**2).sum(dim=(1, 2, 3))
            taken = gain > -torch.empty_like(gain).exponential_(generator=rng)  # never where it is NaN
            rows = taken[:, None, None, None]
            x, slope = torch.where(rows, y, x), torch.where(rows, slope_y, slope)
            energy = torch.where(taken, energy_y, energy)
            accepted = accepted + taken.float().mean() / self.steps
        return x, accepted


def implied(logits: Tensor, target: Tensor | None) -> Tensor:
    """(n, k) -> (n,): minus the log of the unnormalised density of a row, or of a row of its class."""
    if target is None:
        return -logits.logsumexp(dim=1)
    return -logits.gather(1, target[:, None])[:, 0]


def class_entropy(logits: Tensor) -> Tensor:
    """(n, k) -> nats, 0-d: entropy of the histogram of the likeliest classes, ln k where all are equally many."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    shares = (logits.argmax(dim=1)[:, None] == classes).float().mean(dim=0)
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy


def reflected(z: Tensor, spec: InputSpec) -> tuple[Tensor, Tensor]:
    """z thrown back by the walls of the box as often as it takes, and -1 where its direction is turned, else 1."""
    place = ((z - spec.low) / spec.span).remainder(2.0)  # the box and its mirror image, again and again
    inside = spec.low + spec.span * (1.0 - (1.0 - place).abs())
    return inside.clamp(spec.low, spec.high), 1.0 - 2.0 * (place > 1.0)


def _normal(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.empty_like(x).normal_(generator=rng)
