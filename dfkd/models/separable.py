"""Depthwise-separable students: each k x k convolution as one over every map alone, then a mix of the maps.

Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam: MobileNets: Efficient Convolutional Neural Networks for
Mobile Vision Applications. 2017. arXiv:1704.04861, section 3.1. Changed: any network is taken, its first convolution
too, and what it has itself behind a convolution (BatchNorm, ReLU) stays there, in place of their last ReLU.
"""

from collections import OrderedDict

from torch import nn

__all__ = ["separable"]


def separable(module: nn.Module) -> nn.Module:
    """The network, changed in place: fresh weights where a k x k convolution (k > 1) of a to c maps was.

    There stand a depthwise k x k convolution (same stride, padding and dilation), BatchNorm, ReLU, a 1 x 1 convolution
    from a to c maps, BatchNorm: (a k^2 + a c) weights for a c k^2, and 2 (a + c) of BatchNorm. Paths of modules stay.
    Convolutions in groups are left as they are. ValueError where there is none to change.
    """
    found = [(parent, name, part) for parent in module.modules() for name, part in parent.named_children()]
    wide = [(parent, name, part) for parent, name, part in found if isinstance(part, nn.Conv2d) and _separates(part)]
    if not wide:
        raise ValueError("separable: expected a network with convolutions wider than 1x1, found none in it")
    for parent, name, part in wide:
        assert isinstance(part, nn.Conv2d)  # as looked for above
        setattr(parent, name, _separated(part))
    return module


def _separates(part: nn.Conv2d) -> bool:
    return part.groups == 1 and part.kernel_size != (1, 1)


def _separated(part: nn.Conv2d) -> nn.Sequential:
    depthwise = nn.Conv2d(
        part.in_channels,
        part.in_channels,
        part.kernel_size,  # type: ignore[arg-type]  # a pair, annotated as a tuple of any length
        stride=part.stride,  # type: ignore[arg-type]  # likewise
        padding=part.padding,  # type: ignore[arg-type]  # likewise
        dilation=part.dilation,  # type: ignore[arg-type]  # likewise
        groups=part.in_channels,
        bias=False,  # BatchNorm follows
        padding_mode=part.padding_mode,
    )
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        depthwise=depthwise,
        bn1=nn.BatchNorm2d(part.in_channels),
        relu=nn.ReLU(),
        pointwise=nn.Conv2d(part.in_channels, part.out_channels, 1, bias=False),
        bn2=nn.BatchNorm2d(part.out_channels),
    )
    return nn.Sequential(layers).train(part.training)
