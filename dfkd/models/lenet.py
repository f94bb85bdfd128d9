"""LeNet-5 as data-free distillation uses it, and its half.

LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition. 1998.
doi:10.1109/5.726791. Changed as in Chen et al., Data-Free Learning of Student Networks, 2019, arXiv:1904.01186:
ReLU, max pooling, a third convolution over all that is left of a 32x32 image. `bn`: BatchNorm after each convolution.
"""

from collections import OrderedDict

from torch import Tensor, nn

from dfkd.types import InputSpec

__all__ = ["LeNet5", "lenet5"]


class LeNet5(nn.Module):
    """channels: maps of the three 5x5 convolutions. hidden: units before the classifier. bn: with BatchNorm."""

    def __init__(self, spec: InputSpec, channels: tuple[int, int, int], hidden: int, bn: bool) -> None:
        super().__init__()
        first, second, third = channels

        def block(before: int, after: int, pool: bool) -> nn.Sequential:
            layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(before, after, 5, bias=not bn))
            if bn:
                layers["bn"] = nn.BatchNorm2d(after)
            layers["relu"] = nn.ReLU()
            if pool:
                layers["pool"] = nn.MaxPool2d(2)
            return nn.Sequential(layers)

        self.block1 = block(spec.channels, first, pool=True)
        self.block2 = block(first, second, pool=True)
        self.block3 = block(second, third, pool=False)
        self.hidden = nn.Linear(third, hidden)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(hidden, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(x)))
        logits: Tensor = self.linear(self.relu(self.hidden(x.flatten(1))))
        return logits


def lenet5(spec: InputSpec, *, half: bool = False, bn: bool = False) -> LeNet5:
    """half: half the maps and units. bn: BatchNorm after each convolution."""
    if spec.shape[1:] != (32, 32):
        raise ValueError(
            f"lenet5: expected 32x32 images, found {spec.height}x{spec.width}; "
            "load the data with size 32, or take digits_cnn"
        )
    return LeNet5(spec, (3, 8, 60), 42, bn) if half else LeNet5(spec, (6, 16, 120), 84, bn)
