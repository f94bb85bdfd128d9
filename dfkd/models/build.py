"""From a reference to a network: a name of the table, `package.module:function`, or `torchvision:NAME`."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from dfkd.naming import nearest, unknown
from dfkd.types import InputSpec

from .digits_cnn import digits_cnn
from .lenet import lenet5
from .quantised import quantised
from .resnet import resnet
from .resnet_cifar import resnet_cifar
from .separable import separable as separated
from .wrn import parse_wrn, wrn

__all__ = ["MODELS", "SUMMARIES", "build", "import_function", "reference_of"]

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "digits_cnn": digits_cnn,
    "digits_cnn_half": partial(digits_cnn, width=8),
    "lenet5": partial(lenet5, half=False, bn=False),
    "lenet5_bn": partial(lenet5, half=False, bn=True),
    "lenet5_half": partial(lenet5, half=True, bn=False),
    "lenet5_half_bn": partial(lenet5, half=True, bn=True),
    "resnet8": partial(resnet_cifar, depth=8),
    "resnet20": partial(resnet_cifar, depth=20),
    "resnet32": partial(resnet_cifar, depth=32),
    "resnet44": partial(resnet_cifar, depth=44),
    "resnet56": partial(resnet_cifar, depth=56),
    "resnet110": partial(resnet_cifar, depth=110),
    "resnet18": partial(resnet, depth=18),
    "resnet34": partial(resnet, depth=34),
    "wrn-16-1": partial(wrn, depth=16, widen=1),
    "wrn-16-2": partial(wrn, depth=16, widen=2),
    "wrn-40-1": partial(wrn, depth=40, widen=1),
    "wrn-40-2": partial(wrn, depth=40, widen=2),
}
"""Name -> builder, called with the spec and options. Any other legal wrn-d-k is built too."""

SUMMARIES: dict[str, str] = {
    "digits_cnn": "three convolutions with BatchNorm, for 8x8 digits and other small images",
    "digits_cnn_half": "digits_cnn with half the maps",
    "lenet5": "LeNet-5 for 32x32 images, no BatchNorm",
    "lenet5_bn": "LeNet-5 for 32x32 images, with BatchNorm",
    "lenet5_half": "LeNet-5 with half the maps, no BatchNorm",
    "lenet5_half_bn": "LeNet-5 with half the maps, with BatchNorm",
    "resnet8": "CIFAR ResNet, 8 layers, option-A shortcuts",
    "resnet20": "CIFAR ResNet, 20 layers, option-A shortcuts",
    "resnet32": "CIFAR ResNet, 32 layers, option-A shortcuts",
    "resnet44": "CIFAR ResNet, 44 layers, option-A shortcuts",
    "resnet56": "CIFAR ResNet, 56 layers, option-A shortcuts",
    "resnet110": "CIFAR ResNet, 110 layers, option-A shortcuts",
    "resnet18": "ResNet-18 with a 3x3 stem, for small images",
    "resnet34": "ResNet-34 with a 3x3 stem, for small images",
    "wrn-16-1": "wide ResNet, 16 layers, widening 1 (any wrn-d-k with d = 6n + 4 is known)",
    "wrn-16-2": "wide ResNet, 16 layers, widening 2",
    "wrn-40-1": "wide ResNet, 40 layers, widening 1",
    "wrn-40-2": "wide ResNet, 40 layers, widening 2",
}


def build(
    reference: str | Callable[..., nn.Module],
    spec: InputSpec,
    *,
    separable: bool = False,
    bits: int | None = None,
    **options: Any,
) -> nn.Module:
    """A fresh network for images of the spec. options: the builder's own, e.g. digits_cnn's width.

    A function of the user's is given `spec` and `num_classes` where it has parameters of these names. For any network:
    separable: its convolutions as depthwise ones and 1x1 mixes. bits: weights and activations rounded to so many in
    the forward pass, 2 to 16, the first and last layer to 8 or more.
    """
    if not isinstance(separable, bool):
        raise ValueError(f"separable: expected true or false, found {separable!r}")
    module = _built(reference, spec, options)
    if separable:
        module = separated(module)
    return module if bits is None else quantised(module, bits)


def _built(reference: str | Callable[..., nn.Module], spec: InputSpec, options: dict[str, Any]) -> nn.Module:
    if isinstance(reference, nn.Module):
        raise ValueError("model: expected a name or a function that builds a network, found a network")
    if not isinstance(reference, str):
        return _call("model", reference, spec, options)
    if reference.startswith("torchvision:"):
        return _torchvision(reference.partition(":")[2], spec, options)
    if ":" in reference:
        return _call(reference, import_function(reference), spec, options)
    builder = _known(reference)
    fixed = builder.keywords if isinstance(builder, partial) else {}
    allowed = [name for name in inspect.signature(builder).parameters if name != "spec" and name not in fixed]
    for name in options:
        if name not in allowed:
            raise unknown(f"{reference}: option", name, [*allowed, "separable", "bits"])
    return builder(spec, **options)


def reference_of(factory: Callable[..., nn.Module]) -> str | None:
    """`package.module:function` of a factory that another process can import, or None (a lambda, a local)."""
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if not module or not name or module == "__main__" or not name.isidentifier():
        return None
    return f"{module}:{name}" if getattr(sys.modules.get(module), name, None) is factory else None


def _known(name: str) -> Builder:
    if name in MODELS:
        return MODELS[name]
    sizes = parse_wrn(name)
    if sizes is None:
        raise unknown("model", name, MODELS)
    return partial(wrn, depth=sizes[0], widen=sizes[1])


def import_function(reference: str) -> Callable[..., nn.Module]:
    """The object behind package.module:function; modules beside the user's shell are found too."""
    path, _, name = reference.partition(":")
    try:
        try:
            module = import_module(path)
        except ModuleNotFoundError as error:
            here = str(Path.cwd())
            if error.name != path.partition(".")[0] or here in sys.path:
                raise
            sys.path.append(here)  # last, so that nothing installed is shadowed
            module = import_module(path)
    except (ImportError, ValueError) as error:
        raise ValueError(f"model: cannot import {path!r} of {reference!r}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        close = nearest(name, [known for known in vars(module) if not known.startswith("_")])
        hint = f"; the nearest is {close!r}" if close else ""
        raise ValueError(f"model: {path!r} has no {name!r}{hint}")
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(
            f"model: expected a function that builds a network, found {reference!r}, a {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


def _call(reference: str, factory: Callable[..., Any], spec: InputSpec, options: dict[str, Any]) -> nn.Module:
    """factory(**options), with `spec` and `num_classes` where it takes them and they are not options."""
    known = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name in options:
        if name not in known and not open_ended:
            raise unknown(f"{reference}: option", name, known)
    offered = {"spec": spec, "num_classes": spec.num_classes}
    given = {name: value for name, value in offered.items() if name in known} | options
    missing = [n for n, p in known.items() if p.default is p.empty and n not in given and p.kind in _NEEDED]
    if missing:
        raise ValueError(f"{reference}: its parameter {missing[0]!r} has no default; give it as an option")
    module = factory(**given)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{reference}: expected a function that returns an nn.Module, found {type(module).__name__}")
    return module


_NEEDED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _torchvision(name: str, spec: InputSpec, options: dict[str, Any]) -> nn.Module:
    import torchvision  # two seconds, and only here

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown("torchvision model", name, known)
    if spec.channels != 3:
        raise ValueError(f"torchvision:{name}: expected images of 3 channels, found {spec.channels}")
    try:
        module = torchvision.models.get_model(name, weights=None, num_classes=spec.num_classes, **options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name}: {error}") from error
    return module  # type: ignore[no-any-return]
