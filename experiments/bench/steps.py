"""A step of distillation in plain torch on any device, with each of torch's switches alone.

no paper. The images lie on the device and are the same at every step, so that nothing but the step is timed. The plain
step is eager, float32, channels first, without TF32.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from dfkd.runtime import tf32

__all__ = [
    "SWITCHES",
    "Stepper",
    "Switches",
    "precision_of",
    "quiet",
    "recorded",
    "seconds_of",
    "sgd",
    "stepper",
    "take",
    "warm",
]

TEMPERATURE = 4.0


@dataclass(frozen=True)
class Switches:
    """channels_last: layout of images and weights. bf16: autocast of both models. tf32: of float32 products. compiled:
    both models through torch.compile. graph: the whole step recorded once and replayed, on a GPU alone. benchmark:
    cuDNN tries its convolutions and keeps the quickest for each shape, on a GPU alone."""

    channels_last: bool = False
    bf16: bool = False
    tf32: bool = False
    compiled: bool = False
    graph: bool = False
    benchmark: bool = False

    def possible(self, device: torch.device) -> str:
        """Why not on this device; empty where it is possible."""
        return "needs a GPU" if device.type != "cuda" and (self.tf32 or self.graph or self.benchmark) else ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, torch is set as they say where that is not a matter of the step itself; steps are taken inside."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.benchmark
        try:
            with tf32(self.tf32):
                yield
        finally:
            torch.backends.cudnn.benchmark = before


SWITCHES = {
    "plain": Switches(),
    "channels_last": Switches(channels_last=True),
    "bf16": Switches(bf16=True),
    "tf32": Switches(tf32=True),
    "compile": Switches(compiled=True),
    "graph": Switches(graph=True),
    "benchmark": Switches(benchmark=True),
    "channels_last, bf16": Switches(channels_last=True, bf16=True),
    "channels_last, bf16, benchmark": Switches(channels_last=True, bf16=True, benchmark=True),
    "channels_last, bf16, graph": Switches(channels_last=True, bf16=True, graph=True),
}
"""Each alone, then what belongs together."""


def precision_of(switches: Switches) -> str:
    """What its convolutions and products are computed in."""
    if switches.bf16:
        return "bfloat16"
    return "tf32" if switches.tf32 else "float32"


@dataclass(frozen=True)
class Stepper:
    """Called, takes one step and gives its loss, 0-d; `student` is what it trains, in place."""

    step: Callable[[], Tensor]
    student: nn.Module

    def __call__(self) -> Tensor:
        return self.step()


def stepper(
    teacher: nn.Module, student: nn.Module, x: Tensor, switches: Switches, learning_rate: float = 0.05
) -> Stepper:
    """Steps on images x (n, c, h, w), each call the next one, recorded or not. Both models are copied."""
    device = x.device
    layout: Any = torch.channels_last if switches.channels_last else torch.contiguous_format
    teacher, student = (copy.deepcopy(model).to(device).to(memory_format=layout) for model in (teacher, student))
    teacher.eval().requires_grad_(False)
    student.train()
    x = x.contiguous(memory_format=layout)
    optimiser = sgd(list(student.parameters()), learning_rate)
    asked, learning = (torch.compile(m) if switches.compiled else m for m in (teacher, student))

    def answers(model: Any) -> Tensor:
        # without its cache, or a recorded step would go on with the weights it was recorded with
        rounded = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
        with rounded if switches.bf16 else nullcontext():
            logits: Tensor = model(x)
        return log_softmax(logits.float() / TEMPERATURE, dim=1)

    def step() -> Tensor:
        with torch.no_grad():
            told = answers(asked)
        loss = TEMPERATURE**2 * kl_div(answers(learning), told, reduction="batchmean", log_target=True)
        optimiser.zero_grad(set_to_none=not switches.graph)
        loss.backward()
        optimiser.step()
        return loss.detach()

    if switches.graph:
        step = recorded(step, [*student.parameters(), *student.buffers()], optimiser, device)
    return Stepper(step, student)


def sgd(parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser of all steps here."""
    options: dict[str, Any] = {"lr": learning_rate, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    return torch.optim.SGD(parameters, fused=True, **options)


def recorded(
    step: Callable[[], Tensor], tensors: Sequence[Tensor], optimiser: torch.optim.Optimizer, device: torch.device
) -> Callable[[], Tensor]:
    """The step as a graph. What it changes (`tensors`, and what the optimiser keeps) is as if it had not been recorded.

    Recording asks for a few real steps before, on the stream that records.
    """
    with torch.cuda.device(device):
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            warm(step, tensors, optimiser)
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            loss = step()

    def replay() -> Tensor:
        with torch.cuda.device(device):
            graph.replay()
        return loss

    return replay


def warm(
    step: Callable[[], Tensor], tensors: Sequence[Tensor], optimiser: torch.optim.Optimizer, steps: int = 3
) -> None:
    """Takes steps and takes them back, in place: where a graph reads and writes stays where it is."""
    before = [tensor.detach().clone() for tensor in tensors]
    for _ in range(steps):
        step()
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        for kept in optimiser.state.values():
            for value in kept.values():  # momentum, which is zero before the first step
                if isinstance(value, Tensor):
                    value.zero_()


def take(step: Callable[[], Tensor], steps: int) -> list[float]:
    """The losses of so many steps; read at the end alone."""
    losses = [step().clone() for _ in range(steps)]  # a recorded step writes each where the last one lies
    return torch.stack(losses).tolist()  # sync


def seconds_of(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Seconds a step takes, of `steps` in a row; the device is waited for before and after."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # sync
        return time.perf_counter()

    began = now()
    for _ in range(steps):
        step()
    return (now() - began) / steps


def quiet(device: torch.device) -> AbstractContextManager[None]:
    """Inside, whatever makes the host wait for the device raises; nothing happens on a CPU."""
    return _quiet(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _quiet(device: torch.device) -> Iterator[None]:
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)  # sync
        try:
            with (
                warnings.catch_warnings()
            ):  # that the mode is a prototype is said as a warning, which tests make an error
                warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode")
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
