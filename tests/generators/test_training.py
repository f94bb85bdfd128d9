"""The moving average against a slow loop, and weights from a seed."""

import pytest
import torch
from torch import nn

from generators.training import MovingAverage, seeded


def network(seed: int) -> nn.Sequential:
    with seeded(seed):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_moving_average_is_its_definition(decay: float) -> None:
    """Every number of every weight and float buffer, in Python floats; counters are copied."""
    followed = network(0)
    average = MovingAverage(followed, decay)
    slow = {key: value.flatten().tolist() for key, value in followed.state_dict().items()}
    rng = torch.Generator().manual_seed(1)
    for update in range(12):
        followed(torch.randn(8, 3, generator=rng))  # moves the statistics
        with torch.no_grad():
            for parameter in followed.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng))
        average.update(followed)
        keep = min(decay, (1 + update) / (10 + update))
        for key, value in followed.state_dict().items():
            new = value.flatten().tolist()
            slow[key] = [keep * a + (1 - keep) * b for a, b in zip(slow[key], new, strict=True)]
    found = average.network.state_dict()
    for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(found[key].flatten(), torch.tensor(slow[key]))
    assert int(found["1.num_batches_tracked"]) == 12
    assert (found["0.weight"] - followed.state_dict()["0.weight"]).abs().max() > 1e-3 or decay == 0.0


def test_moving_average_begins_as_what_it_follows_and_shares_nothing() -> None:
    followed = network(0)
    average = MovingAverage(followed, 0.9)
    with torch.no_grad():
        for parameter in followed.parameters():
            parameter.add_(1.0)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    torch.testing.assert_close(average.network.state_dict()["0.weight"] + 1.0, followed.state_dict()["0.weight"])


def test_moving_average_goes_on_where_it_was() -> None:
    followed = network(0)
    one, other = MovingAverage(followed, 0.9), MovingAverage(network(5), 0.9)
    for seed in (1, 2):
        one.update(network(seed))
    other.load_state_dict(one.state_dict())
    for average in (one, other):
        average.update(network(3))
    for key, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key]), key


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_moving_average_refuses(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema: expected a number in \[0, 1\), found"):
        MovingAverage(network(0), decay)


def test_weights_from_a_seed_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, again, other = network(1), network(1), network(2)
    assert torch.equal(before, torch.get_rng_state())
    weights = [net.state_dict()["0.weight"] for net in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
