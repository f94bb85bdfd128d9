"""The runs that test_resume interrupts; as a script, it interrupts them in processes of their own.

python resume_run.py FOLDER: every run is killed in the middle of a draw, after the sampler has moved on and before the
step is done; one is killed from outside, whatever it is doing, and one is asked to end. Each leaves its checkpoint in
FOLDER, and exits.json has how its process ended and in which draw the signal came. Torch is imported once: the
processes are forked.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dfkd.engine import Budget, Optimiser, Training, train
from dfkd.losses import combine
from dfkd.losses.response import KL
from dfkd.problem import Probe, Problem
from dfkd.registry import SAMPLERS, find
from dfkd.rng import Stream, derive, initialised
from dfkd.types import Batch, InputSpec

SPEC = InputSpec((1, 8, 8), 4)
STEPS = 18


def net(seed: int, dropout: float = 0.0) -> nn.Sequential:
    with initialised(seed):
        conv = nn.Conv2d(1, 6, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(384, 4))


class Parts:
    """A toy's state: named tensors, streams, networks, optimisers."""

    bank: Tensor
    priority: Tensor
    last: Tensor
    draws: int
    stream: Stream

    def __init__(self, **parts: Any) -> None:
        self.__dict__.update(parts)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def state_dict(self) -> dict[str, Any]:
        return {
            name: part.state_dict() if hasattr(part, "state_dict") else part for name, part in self.__dict__.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, saved in state.items():
            part = self.__dict__[name]
            if hasattr(part, "load_state_dict"):
                part.load_state_dict(saved)
            else:
                self.__dict__[name] = saved


@dataclass(frozen=True)
class ToyGenerator:
    """A network with Adam that learns at every draw to make the teacher sure."""

    name: ClassVar[str] = "toy_generator"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Parts:
        del problem
        with initialised(seed):
            generator = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
        adam = torch.optim.Adam(generator.parameters(), lr=0.01)
        return Parts(stream=Stream(seed), generator=generator, adam=adam)

    def draw(self, state: Parts, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn
        x = state.generator(torch.randn(n, 8, generator=state.stream.advance()))
        with problem.searching():
            log_p = problem.teacher(x).logits.log_softmax(dim=1)
        state.adam.zero_grad()
        (-(log_p.exp() * log_p).sum(dim=1).mean()).backward()
        state.adam.step()
        return Batch(x.detach())

    def observe(self, state: Parts, batch: Batch, loss: Tensor) -> None: ...


@dataclass(frozen=True)
class ToyPool:
    """A bank of bytes that grows every third draw, and is drawn from by the losses that were observed."""

    name: ClassVar[str] = "toy_pool"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = False

    def init(self, problem: Problem, seed: int) -> Parts:
        bank = torch.empty(0, *problem.spec.shape, dtype=torch.uint8)
        return Parts(stream=Stream(seed), bank=bank, priority=torch.empty(0), draws=0, last=torch.empty(0))

    def draw(self, state: Parts, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn
        rng = state.stream.advance()
        if state.draws % 3 == 0:
            new = torch.randint(0, 256, (24, *problem.spec.shape), generator=rng, dtype=torch.uint8)
            state.bank = torch.cat([state.bank, new])
            state.priority = torch.cat([state.priority, torch.ones(24)])
        state.draws += 1
        state.last = torch.multinomial(state.priority, n, generator=rng)
        return Batch(state.bank[state.last].float() / 255)

    def observe(self, state: Parts, batch: Batch, loss: Tensor) -> None:
        del batch
        state.priority[state.last] = 0.1 + loss


@dataclass(frozen=True)
class ToyAdversary:
    """Noise moved to where student and teacher disagree: its draws depend on the student, buffers included."""

    name: ClassVar[str] = "toy_adversary"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("input_grad",)
    uses_student: ClassVar[bool] = True

    def init(self, problem: Problem, seed: int) -> Stream:
        return Stream(seed, problem.device)

    def draw(self, state: Stream, problem: Problem, n: int, learn: bool = True) -> Batch:
        del learn
        x = torch.rand(n, *problem.spec.shape, generator=state.advance())
        with problem.searching():
            for _ in range(2):
                x.requires_grad_(True)
                gap = (problem.student(x).logits - problem.teacher(x).logits).square().sum()
                (slope,) = torch.autograd.grad(gap, x)
                x = (x + 0.05 * slope.sign() * (1.0 - 0.5 * problem.progress)).clamp(0, 1).detach()
        return Batch(x)

    def observe(self, state: Stream, batch: Batch, loss: Tensor) -> None: ...


@dataclass(frozen=True)
class Deadly:
    """Another sampler; sends its own process a signal in one of its draws."""

    base: Any
    number: int = 0
    at: int = 0
    calls: list[int] = field(default_factory=list, hash=False, compare=False)
    name: ClassVar[str] = "deadly"
    data_free: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    uses_student: ClassVar[bool] = True

    def init(self, problem: Problem, seed: int) -> Any:
        return self.base.init(problem, seed)

    def draw(self, state: Any, problem: Problem, n: int, learn: bool = True) -> Batch:
        batch: Batch = self.base.draw(state, problem, n, learn)
        self.calls.append(1)
        if len(self.calls) == self.at:
            os.kill(os.getpid(), self.number)
        return batch

    def observe(self, state: Any, batch: Batch, loss: Tensor) -> None:
        self.base.observe(state, batch, loss)


def registered(name: str, **options: Any) -> Any:
    return find("sampler", name, SAMPLERS)(**options)


def inverted() -> Any:
    return registered("deep_inversion", steps=3, batch=12)


RUNS: dict[str, Callable[[], Any]] = {
    "toy_generator": ToyGenerator,
    "toy_pool": ToyPool,
    "toy_adversary": ToyAdversary,
    "generative": lambda: registered("generative", latent=8, width="small", batch=8, student_steps=2),
    "pooled": lambda: registered("pooled", base=inverted(), round=24, every=4),
    "adversarial": lambda: registered("adversarial", base=registered("uniform"), steps=2),
    "all at once": lambda: registered(
        "adversarial",
        base=registered(
            "mixture",
            samplers=(
                registered("augmented", base=registered("pooled", base=inverted(), round=16, every=3, capacity=32)),
                registered("generative", latent=8, width="small", batch=8, student_steps=3),
                registered("balanced", base=registered("mixup", base=registered("smoothed"))),
            ),
        ),
        steps=1,
    ),
}


def start(
    name: str, checkpoint: Path | None, number: int = 0, at: int = 0, every: float = 0.0, student_seed: int = 2
) -> tuple[Training, Problem]:
    """The run of this name, from its checkpoint where there is one. every: seconds from one save to the next."""
    student = Probe(net(student_seed, dropout=0.2), SPEC, name="student")
    problem = Problem(Probe(net(1), SPEC), student, SPEC, torch.device("cpu"), seed=derive(0, "run"))
    training = train(
        problem,
        Deadly(RUNS[name](), number, at),
        combine({"kl": (1.0, KL(4.0))}),
        Budget(batch=12, steps=STEPS),
        Optimiser(learning_rate=0.1, schedule="one_cycle"),
        5,
        checkpoint=checkpoint,
        checkpoint_seconds=every,
        log_points=4,
    )
    return training, problem


def in_a_process(work: Callable[[], object], end: Callable[[int], object] = lambda _: None) -> int:
    """How a forked process that does this work ends: its exit status, or minus a signal. end: is given its id."""
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    end(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_soon(process: int, path: Path) -> None:
    """Kills it at some moment after its first save: in a step, or in the middle of a later save."""
    while not path.exists():
        time.sleep(0.001)
    time.sleep(random.Random(1).random() * 0.02)
    os.kill(process, signal.SIGKILL)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    start("toy_generator", None)  # what torch imports in its first step is then there for all
    exits: dict[str, tuple[int, int]] = {}
    for name in RUNS:
        at = random.Random(f"{name} 3").randint(3, STEPS - 1)  # any step, but the same in every run of the tests
        exits[name] = in_a_process(partial(start, name, folder / f"{name}.pt", signal.SIGKILL, at)), at
    path = folder / "outside.pt"
    exits["outside"] = (
        in_a_process(partial(start, "toy_generator", path, signal.SIGSTOP, STEPS - 2), lambda p: kill_soon(p, path)),
        STEPS - 2,
    )
    exits["asked"] = in_a_process(partial(start, "toy_pool", folder / "asked.pt", signal.SIGTERM, 5, 1e9)), 5
    (folder / "exits.json").write_text(json.dumps(exits))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
