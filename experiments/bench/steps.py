"""A step of distillation in plain torch on any device, with each of torch's switches alone.

no paper. The images lie on the device and are the same at every step, so that nothing but the step is timed. The plain
step is eager, float32, channels first, without TF32.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

__all__ = ["SWITCHES", "Switches", "quiet", "seconds_of", "stepper"]

TEMPERATURE = 4.0


@dataclass(frozen=True)
class Switches:
    """channels_last: layout of images and weights. bf16: autocast of both models. tf32: of float32 products. compiled:
    both models through torch.compile. graph: the whole step recorded once and replayed, on a GPU alone."""

    channels_last: bool = False
    bf16: bool = False
    tf32: bool = False
    compiled: bool = False
    graph: bool = False

    def possible(self, device: torch.device) -> str:
        """Why not on this device; empty where it is possible."""
        return "needs a GPU" if device.type != "cuda" and (self.tf32 or self.graph) else ""


SWITCHES = {
    "plain": Switches(),
    "channels_last": Switches(channels_last=True),
    "bf16": Switches(bf16=True),
    "tf32": Switches(tf32=True),
    "compile": Switches(compiled=True),
    "graph": Switches(graph=True),
    "channels_last, bf16": Switches(channels_last=True, bf16=True),
    "channels_last, bf16, graph": Switches(channels_last=True, bf16=True, graph=True),
}
"""Each alone, then what belongs together."""


def stepper(
    teacher: nn.Module, student: nn.Module, x: Tensor, switches: Switches, learning_rate: float = 0.05
) -> Callable[[], Tensor]:
    """A function that takes one step on images x (n, c, h, w) and gives its loss, 0-d. Both models are copied."""
    device = x.device
    layout: Any = torch.channels_last if switches.channels_last else torch.contiguous_format
    teacher, student = (copy.deepcopy(model).to(device).to(memory_format=layout) for model in (teacher, student))
    teacher.eval().requires_grad_(False)
    student.train()
    x = x.contiguous(memory_format=layout)
    options: dict[str, Any] = {"lr": learning_rate, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    optimiser = torch.optim.SGD(student.parameters(), fused=True, **options)
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

    return _recorded(step, device) if switches.graph else step


def _recorded(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as a graph, after three of its steps on a stream of their own, as recording asks for."""
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


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
    return _quiet() if device.type == "cuda" else nullcontext()


@contextmanager
def _quiet() -> Iterator[None]:
    torch.cuda.synchronize()  # sync
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
