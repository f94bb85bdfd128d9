"""Quantised students: weights and activations rounded to few bits in the forward pass, learnt through the rounding.

Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko: Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference. CVPR 2018. arXiv:1712.05877. Straight-through gradients: Bengio, Leonard, Courville.
2013. arXiv:1308.3432. Changed: weights symmetric with a scale for each output channel, BatchNorm not folded, the first
and the last layer at 8 bits.
"""

import torch
from torch import Tensor, nn

__all__ = ["INPUT_RANGE", "quantised"]

INPUT_RANGE = "input_range"
"""The buffer of a quantised layer that its float twin has not: smallest and largest input, a moving average."""

_EDGE_BITS = 8  # of the first and the last layer
_MOMENTUM = 0.01  # of the moving average, as PyTorch's own observers have it; no paper gives a number


class _Rounding:
    """What both kinds of layers have beside their float twin: bits, and the range of what they are given."""

    bits: int
    input_range: Tensor
    training: bool
    weight: Tensor

    def rounded_weight(self) -> Tensor:
        """Symmetric, a scale for each output channel; no gradient through the scale."""
        top = 2 ** (self.bits - 1) - 1
        largest = self.weight.detach().abs().flatten(1).amax(dim=1)
        scale = (largest / top).clamp_min(torch.finfo(torch.float32).tiny)  # a channel of zeros
        # zero points as floats: integers would be looked at, which waits for the device
        return torch.fake_quantize_per_channel_affine(self.weight, scale, torch.zeros_like(scale), 0, -top, top)

    def rounded_input(self, x: Tensor) -> Tensor:
        """Affine, one scale and zero point for all of x, from the range; it follows x in training."""
        x, seen = x.float(), self.input_range
        if self.training:
            with torch.no_grad():
                low, high = x.aminmax()
                now = torch.stack([low, high]).to(seen)
                moved = seen + _MOMENTUM * (now - seen)
                seen.copy_(torch.where((seen == 0.0).all(), now, moved))  # all of it where nothing was seen yet
        low, high = seen[0].clamp_max(0.0), seen[1].clamp_min(0.0)  # zero is among the values, as padding needs it
        levels = 2**self.bits - 1
        scale = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round().clamp(0, levels).to(torch.int32)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, levels)
        return torch.where(high > low, rounded, x)  # as it is where no range is known


class QuantisedConv2d(_Rounding, nn.Conv2d):
    """A convolution of rounded inputs with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(self.rounded_input(input), self.rounded_weight(), self.bias)
        return y


class QuantisedLinear(_Rounding, nn.Linear):
    """A linear layer of rounded inputs with rounded weights."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(self.rounded_input(input), self.rounded_weight(), self.bias)


_TWINS: dict[type[nn.Module], type[QuantisedConv2d | QuantisedLinear]] = {
    nn.Conv2d: QuantisedConv2d,
    nn.Linear: QuantisedLinear,
}


def quantised(module: nn.Module, bits: int) -> nn.Module:
    """The network, changed in place: its Conv2d and Linear layers round weights and inputs to `bits`, 2 to 16.

    The first and the last of them, in the order in which they are registered, have 8 bits at least. Weights, names and
    initial values stay, each layer has a buffer `input_range` more. Subclasses of these layers are left as they are.
    ValueError where there is none to change.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 16:
        raise ValueError(f"bits: expected an integer from 2 to 16, found {bits!r}")
    layers = [part for part in module.modules() if type(part) in _TWINS]
    if not layers:
        raise ValueError("bits: expected a network with Conv2d or Linear layers to quantise, found none in it")
    for part in layers:
        edge = part is layers[0] or part is layers[-1]
        # the same layer with the same parameters, of which only the forward pass is another
        part.__class__ = _TWINS[type(part)]
        part.bits = max(bits, _EDGE_BITS) if edge else bits  # type: ignore[assignment]  # not a parameter
        weight = part.get_parameter("weight")
        part.register_buffer(INPUT_RANGE, torch.zeros(2, dtype=torch.float32, device=weight.device))
    return module
