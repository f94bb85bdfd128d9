"""Networks for images of the problem's size: equal seeds, equal weights, and who says that a size cannot be made."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dfkd.interfaces import Sampler
from dfkd.problem import Problem, UnsupportedProblem
from dfkd.types import InputSpec
from generators.trunk import Trunk
from samplers import CMI, DAFL, DFAD, NAYER, SSDKD, FastDFKD, MosaicKD, Pooled, PreDFKD, SpaceshipNet
from samplers.ingredients import TrunkNetwork, built

MakeProblem = Callable[..., Problem]


def test_weights_are_those_of_the_seed(make_problem: MakeProblem) -> None:
    problem, network = make_problem(), TrunkNetwork(4, "small")
    before = torch.get_rng_state()
    one, same, other = (next(built(network.build, problem, seed, "toy").parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sampler",
    [
        DAFL(latent=4, batch=10),
        DFAD(network="dcgan"),
        CMI(),
        FastDFKD(),
        NAYER(),
        SSDKD(),
        SpaceshipNet(),
        PreDFKD(latent=4, batch=10),
        MosaicKD("digits", batch=10),
        Pooled(CMI(), round=4),
    ],
    ids=lambda sampler: sampler.name,
)
def test_a_size_that_cannot_be_made_is_the_problem_s(sampler: Sampler, make_problem: MakeProblem) -> None:
    """So that it is one line of a comparison, and the other samplers' runs go on."""
    name = "cmi" if isinstance(sampler, Pooled) else sampler.name
    said = rf"^{name}: shape: expected .* sides .*, found \(1, 10, 10\); deep_inversion and energy, .* any size$"
    with pytest.raises(UnsupportedProblem, match=said):
        sampler.init(make_problem(shape=(1, 10, 10)), 0)


def test_a_teacher_without_batchnorm_is_not_sent_to_what_needs_it(
    make_problem: MakeProblem, brightness: Callable[[InputSpec], nn.Module]
) -> None:
    with pytest.raises(UnsupportedProblem, match=r"; energy, which moves pixels, makes images of any size$"):
        DFAD().init(make_problem(shape=(1, 10, 10), teacher=brightness), 0)


def test_settings_that_cannot_be_are_no_problem_of_the_teacher_s(make_problem: MakeProblem) -> None:
    with pytest.raises(ValueError, match=r"^latent: expected") as caught:
        built(lambda spec: Trunk(spec.shape, latent=0), make_problem(), 0, "toy")
    assert not isinstance(caught.value, UnsupportedProblem)
