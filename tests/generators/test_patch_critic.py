"""The patch critic: its size, what one of its patches sees, and its independence of the box."""

import pytest
import torch

from generators.patch_critic import PatchCritic

X = torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(1))


def test_has_the_published_layers() -> None:
    critic = PatchCritic(3)
    first, second, last = 3 * 128 * 16 + 128, 128 * 256 * 16, 256
    assert sum(p.numel() for p in critic.parameters()) == first + second + 2 * 256 + last
    assert critic(torch.rand(2, 3, 32, 32)).shape == (2, 8, 8)


def test_a_patch_sees_ten_pixels_each_way_and_no_more() -> None:
    critic, x = PatchCritic(2, 4).eval(), X.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x)[0, 2, 2], x)
    seen = slope[0].abs().sum(dim=0) > 0.0
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    # the second layer's window is at rows 3 to 6 of the first's maps, these at pixels 5 to 14
    assert (rows.min().item(), rows.max().item()) == (5, 14)
    assert (columns.min().item(), columns.max().item()) == (5, 14)
    assert not slope[1:].any()


def test_says_the_same_in_any_box() -> None:
    one, other = PatchCritic(2, 4), PatchCritic(2, 4, low=-1.0, high=3.0)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(4.0 * X - 1.0), one(X))


@pytest.mark.parametrize(("channels", "width"), [(0, 4), (1, 0)])
def test_names_the_wrong_size(channels: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"channels, width: expected .*, found {channels} and {width}"):
        PatchCritic(channels, width)
