"""Where rounds begin: layers drawn anew have the law they should, and a start moves by its published formula."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dfkd.rng import initialised
from generators.trunk import Trunk
from samplers.ingredients import Meta, due, redraw, redraw_first, renew
from samplers.ingredients.reset import PULL


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trunk() -> Trunk:
    with initialised(4):
        return Trunk((1, 8, 8), 32, "small")


def test_layers_drawn_anew_have_the_published_law() -> None:
    net = trunk()
    net.train()(torch.randn(8, 32, generator=generator()))  # so that there are statistics to forget
    redraw(net, generator())
    for part in net.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            weight = part.weight
            # the standard error of a standard deviation is it / sqrt(2 n): 6 of them
            assert weight.std().item() == pytest.approx(0.02, rel=6.0 / (2 * weight.numel()) ** 0.5)
            assert abs(weight.mean().item()) < 6 * 0.02 / weight.numel() ** 0.5
            assert part.bias is None or part.bias.abs().max() == 0.0
        elif isinstance(part, nn.BatchNorm2d):
            assert abs(part.weight.mean().item() - 1.0) < 6 * 0.02 / part.weight.numel() ** 0.5
            assert part.weight.std().item() == pytest.approx(0.02, rel=6.0 / (2 * part.weight.numel()) ** 0.5)
            assert part.bias.abs().max() == 0.0
            assert part.running_mean is not None
            assert part.running_mean.abs().max() == 0.0


def test_what_is_drawn_anew_comes_from_its_generator() -> None:
    nets = [trunk() for _ in range(3)]
    before = torch.get_rng_state()
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        redraw(net, generator(seed))
    assert torch.equal(before, torch.get_rng_state())
    one, same, other = (torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_first_layer_is_the_linear_one_and_its_batchnorm() -> None:
    net, old = trunk(), trunk()
    redraw_first(net, generator())
    changed = {name for (name, a), (_, b) in zip(net.named_parameters(), old.named_parameters(), strict=True)
               if not torch.equal(a, b)}  # fmt: skip
    assert changed == {"stem.weight", "stem.bias", "body.0.weight"}  # body.0.bias was 0 and is
    weight = next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d)).weight
    assert abs(weight.mean().item()) < 0.01  # N(0, 0.02^2), not around 1
    with pytest.raises(ValueError, match="module: expected a BatchNorm layer to draw anew, found none"):
        redraw_first(nn.Linear(2, 2), generator())


def test_due() -> None:
    assert [count for count in range(9) if due(count, 3)] == [0, 3, 6]
    assert [count for count in range(9) if due(count, None)] == []


def test_a_network_renewed_is_one_just_built() -> None:
    net = trunk()
    net.train()(torch.randn(8, 32, generator=generator()))
    redraw(net, generator())
    before = torch.get_rng_state()
    renew(net, 5)
    assert torch.equal(before, torch.get_rng_state())
    with initialised(5):
        built = Trunk((1, 8, 8), 32, "small")
    for (name, a), b in zip(net.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


# -- meta-initialisation -----------------------------------------------------------------------------------------


def loss_of(net: nn.Module, step: int) -> Tensor:
    x = torch.randn(5, 3, generator=generator(step))
    squares: Tensor = net(x) ** 2
    return squares.mean()


def start() -> nn.Linear:
    with initialised(2):
        return nn.Linear(3, 2)


def a_round(meta: Meta, seeds: tuple[int, ...]) -> nn.Module:
    fast = meta.begin()
    optimiser = torch.optim.SGD(fast.parameters(), lr=0.1)
    for seed in seeds:
        optimiser.zero_grad(set_to_none=True)
        loss_of(fast, seed).backward()
        optimiser.step()
        meta.collect(fast)
    meta.end(fast)
    return fast


def adam(parameter: Tensor, grads: list[Tensor], rate: float) -> Tensor:
    """Adam (0.5, 0.999) by its formula, one step for each gradient."""
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for t, grad in enumerate(grads, start=1):
        first, second = 0.5 * first + 0.5 * grad, 0.999 * second + 0.001 * grad**2
        parameter = parameter - rate * (first / (1 - 0.5**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return parameter


def by_hand(weights: list[Tensor], seeds: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Plain descent from these weights: the gradients' sums over the steps, and where it ends."""
    w, b = (value.clone() for value in weights)
    sums = [torch.zeros_like(w), torch.zeros_like(b)]
    for seed in seeds:
        x = torch.randn(5, 3, generator=generator(seed))
        out = x @ w.T + b  # d mean(out^2) / d out = 2 out / 10
        grads = [(2 * out / 10).T @ x, (2 * out / 10).sum(dim=0)]
        sums = [total + grad for total, grad in zip(sums, grads, strict=True)]
        w, b = w - 0.1 * grads[0], b - 0.1 * grads[1]
    return sums, [w, b]


@pytest.mark.parametrize("step", ["fomaml", "reptile"])
def test_the_start_moves_by_one_adam_step_a_round(step: str) -> None:
    meta = Meta(start(), learning_rate=0.01, step=step)  # type: ignore[arg-type]  # the two words
    origin = [p.detach().clone() for p in meta.network.parameters()]
    grads: list[list[Tensor]] = [[], []]
    expected = origin
    for seeds in ((1, 2, 3), (4, 5, 6)):
        sums, end = by_hand(expected, seeds)
        found = sums if step == "fomaml" else [67.0 * (a - b) for a, b in zip(expected, end, strict=True)]
        for history, grad in zip(grads, found, strict=True):
            history.append(grad)
        expected = [adam(first, history, 0.01) for first, history in zip(origin, grads, strict=True)]
        fast = a_round(meta, seeds)
        for now, last in zip(fast.parameters(), end, strict=True):
            torch.testing.assert_close(now.detach(), last)
        for now, then in zip(meta.network.parameters(), expected, strict=True):
            torch.testing.assert_close(now.detach(), then)
    assert PULL == 67.0
    assert all(p.grad is None for p in meta.network.parameters())


def test_a_round_begins_at_a_copy_in_training_mode() -> None:
    meta = Meta(trunk().eval(), 0.1)
    fast = meta.begin()
    assert fast.training
    assert not meta.network.training
    before = [p.detach().clone() for p in meta.network.parameters()]
    with torch.no_grad():
        for p in fast.parameters():
            p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, meta.network.parameters(), strict=True))


def test_is_saved_with_its_optimiser() -> None:
    meta, again = Meta(start(), 0.01), Meta(start(), 0.01)
    a_round(meta, (1, 2))
    file = io.BytesIO()
    torch.save(meta.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    for one in (meta, again):
        a_round(one, (3, 4))
    for a, b in zip(meta.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_refuses_other_steps() -> None:
    kind: Callable[..., Meta] = Meta
    with pytest.raises(ValueError, match="step: expected one of fomaml, reptile, found 'maml'"):
        kind(start(), 0.1, "maml")
