"""Which network a generator is: settings that recipes hand on, and that build it for the images of a problem."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, get_args

from torch import nn

from dfkd.problem import Problem, UnsupportedProblem
from dfkd.rng import initialised
from dfkd.types import InputSpec
from generators.dcgan import Dcgan
from generators.trunk import Head, Trunk, Width

from ..checks import between, one_of, positive, whole_at_least

__all__ = ["DcganNetwork", "Network", "TrunkNetwork", "built"]


class Network(Protocol):
    """Settings of a network that maps latents (n, latent) to images in the box."""

    @property
    def latent(self) -> int: ...

    def build(self, spec: InputSpec) -> nn.Module:
        """Called where its weights are to be drawn. ValueError for a size it cannot make."""


@dataclass(frozen=True)
class TrunkNetwork:
    """The settings of generators.Trunk."""

    latent: int = 256
    width: Width = "large"
    head: Head = "sigmoid"
    batchnorm_eps: float = 1e-5
    mean: float = 0.5
    std: float = 0.25
    biases: bool = False
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent")
        one_of(self, get_args(Width), "width")
        one_of(self, get_args(Head), "head")
        positive(self, "batchnorm_eps", "std")
        between(self, 0.0, 1.0, "mean")

    def build(self, spec: InputSpec) -> nn.Module:
        return Trunk(
            spec.shape,
            self.latent,
            self.width,
            low=spec.low,
            high=spec.high,
            batchnorm_eps=self.batchnorm_eps,
            head=self.head,
            mean=self.mean,
            std=self.std,
            biases=self.biases,
            spectral_norm=self.spectral_norm,
        )


@dataclass(frozen=True)
class DcganNetwork:
    """The settings of generators.Dcgan, for sides that are multiples of 16."""

    latent: int = 256

    def __post_init__(self) -> None:
        whole_at_least(self, 1, "latent")

    def build(self, spec: InputSpec) -> nn.Module:
        return Dcgan(spec.shape, self.latent, low=spec.low, high=spec.high)


def built(build: Callable[[InputSpec], nn.Module], problem: Problem, seed: int, who: str) -> nn.Module:
    """A network for the problem's images, its weights drawn from the seed. UnsupportedProblem naming `who` where it
    cannot make any of their size."""
    try:
        with initialised(seed):
            return build(problem.spec).to(problem.device)
    except ValueError as error:
        if not str(error).startswith("shape: "):
            raise
        batchnorm = "batchnorm" in problem.teacher.capabilities
        other = (
            "deep_inversion and energy, which move pixels, make" if batchnorm else "energy, which moves pixels, makes"
        )
        raise UnsupportedProblem(f"{who}: {error}; {other} images of any size") from error
