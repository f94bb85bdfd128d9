"""The noisy layer: each row through the block it stands in, noise of the published law, embeddings left alone."""

import pytest
import torch
from torch import nn

from dfkd.rng import initialised
from generators import LabelGenerator, NoisyLayer

EMBEDDINGS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))


def layer(blocks: int = 3, learned: bool = False) -> NoisyLayer:
    with initialised(2):
        return NoisyLayer(EMBEDDINGS, blocks, 4, learned)


def test_rows_go_through_the_block_they_stand_in() -> None:
    net, target = layer().train(), torch.tensor([0, 1, 2, 0, 1, 2, 1, 1])
    found = net(target)
    rows = EMBEDDINGS[target]
    normal = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    for i in range(8):
        block = net.blocks[i // 3]
        assert isinstance(block, nn.Linear)
        torch.testing.assert_close(found[i], block.weight @ normal[i] + block.bias)
    # rows of one class differ from block to block, and not within one
    assert not torch.allclose(found[0], found[3])
    torch.testing.assert_close(found[6], found[7])


def test_the_last_block_takes_what_is_left() -> None:
    net, target = layer(blocks=2), torch.tensor([0, 1, 2, 0, 1, 2, 1])
    assert net(target).shape == (7, 4)
    assert layer(blocks=4)(torch.tensor([0, 1, 2])).shape == (3, 4)  # a batch may end early


def test_noise_is_drawn_anew_with_its_law() -> None:
    with initialised(2):
        net = NoisyLayer(torch.randn(3, 50), 2, 400)
    before = torch.get_rng_state()
    net.redraw(torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())
    blocks = [block for block in net.blocks if isinstance(block, nn.Linear)]
    weights = torch.cat([block.weight.detach().clone() for block in blocks])
    # 40 000 values of N(0, 1): the mean's standard error is 0.005, the deviation's 0.0035; five of them
    assert abs(weights.mean().item()) < 0.025
    assert weights.std().item() == pytest.approx(1.0, abs=0.018)
    assert all(block.bias.abs().max() == 0.0 for block in blocks)
    net.redraw(torch.Generator().manual_seed(4))
    assert not torch.equal(weights[:400], blocks[0].weight)


def test_embeddings_learn_only_where_they_are_told_to() -> None:
    for learned in (False, True):
        net = layer(learned=learned)
        assert torch.equal(net.embeddings, EMBEDDINGS)
        net(torch.tensor([0, 1, 2, 0])).square().sum().backward()
        assert (net.embeddings.grad is not None) == learned
        assert "embeddings" in net.state_dict()


def test_makes_images_of_classes() -> None:
    with initialised(2):
        net = LabelGenerator((1, 8, 12), EMBEDDINGS, 2, noise=6, low=-1.0, high=2.0)
    net.noisy.redraw(torch.Generator().manual_seed(3))
    x = net(torch.tensor([0, 1, 2, 0, 1]))
    assert x.shape == (5, 1, 8, 12)
    assert x.min() >= -1.0
    assert x.max() <= 2.0
    assert x.max() > 1.0


def test_refuses_what_is_no_table() -> None:
    with pytest.raises(ValueError, match=r"embeddings: expected \(classes, length\), found \(3,\)"):
        NoisyLayer(torch.zeros(3), 1, 4)
    with pytest.raises(ValueError, match="blocks: expected an integer >= 1, found 0"):
        NoisyLayer(EMBEDDINGS, 0, 4)
