"""A device that is none: tensors on it are computed on the CPU, and whatever a GPU would refuse or wait for is found.

no paper. Where there is no GPU, code that mixes devices, or that makes the host wait for the device, still shows
itself. Tensors report the device `meta`, of which torch has no kernels that compute, so that every operation passes by
here. Which operations wait inside of a kernel is a list, READS, of those that are known to; numbers that `new_tensor`
or `as_tensor` brings from the host pass unseen, and so does a generator of the host. What it cannot show is what needs
a GPU: its kernels, its memory, its graphs, its speed.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["DEVICE", "MixedDevicesError", "stand_in"]

DEVICE = torch.device("meta")
READS = (
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("bincount", "multinomial", "_linalg_check_errors"),
)
"""Operations whose answer, or the shape of it, or whether it can be, the host has to know."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of the device and of the host."""


class _There(Tensor):
    """A tensor of the device; `held` is what it is made of, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_There":
        made: _There = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise AssertionError("a tensor of the device outlived it")


class _Device(TorchDispatchMode):
    """Every operation inside, in the order they come. waits: of those that made the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.partition("::")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there, here = (
            [x for x in given if isinstance(x, _There)],
            [x for x in given if not isinstance(x, _There)],
        )
        on_device = bool(there)
        if kwargs.get("device") is not None:  # a factory, or a copy
            on_device = torch.device(kwargs["device"]).type == DEVICE.type
            kwargs["device"] = torch.device("cpu")
            if given and on_device != bool(there) and not (on_device and kwargs.get("non_blocking")):
                self.waits.append(f"{name} between devices")
        elif there and any(x.ndim for x in here):
            if name not in ("copy_", *INDEXING):
                raise MixedDevicesError(f"{name}: tensors of the device and of the host")
            self.waits.append(f"{name} from the host")
        if there and name in READS:
            self.waits.append(name)
        if name == "repeat_interleave" and there and kwargs.get("output_size") is None:
            self.waits.append(name)  # by a tensor of numbers: by one number it is made of other operations
        if there and name in INDEXING and any(x.dtype == torch.bool for x in given[1:]):
            self.waits.append(f"{name} by a mask")
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not on_device or (name == "copy_" and not isinstance(args[0], _There)):
            return args[0] if name == "copy_" else out
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_put, out))


def _held(x: Any) -> Any:
    return x.held if isinstance(x, _There) else x


def _put(x: Any) -> Any:
    return _There(x) if isinstance(x, Tensor) else x


class _Generator(torch._C.Generator):
    """The CPU's, of which samplers learn that it lives on the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # torch's is no less read-only
        return DEVICE


@contextmanager
def stand_in() -> Iterator[list[str]]:
    """Inside, DEVICE is a device; gives the list of what made the host wait for it, which grows. Masked indices and
    copies from the host count, but for copies to the device that are asked not to block."""
    importlib.import_module("torch._dynamo")  # else it is at the first mode, and reads what is patched below for a type
    generator, tensor, autocast, load = torch.Generator, torch.tensor, torch.autocast, torch.load
    optimizer = importlib.import_module("torch.optim.optimizer")  # torch.optim hides it
    fused = [*optimizer._get_fused_kernels_supported_devices(), DEVICE.type]

    def a_generator(device: Any = "cpu") -> Any:
        return _Generator() if torch.device(device).type == DEVICE.type else generator(device)

    def a_tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = tensor(data, **options)
        return made if device is None else made.to(device)

    def loaded(file: Any, *, map_location: Any = None, **options: Any) -> Any:
        if isinstance(map_location, dict):  # where tensors were is where they go, but for those of a GPU
            return load(file, map_location=map_location, **options)
        read = load(file, map_location=map_location and "cpu", **options)
        return tree_map(lambda x: x.to(map_location) if map_location and isinstance(x, Tensor) else x, read)

    def rounded(device: str, *given: Any, **options: Any) -> Any:
        return nullcontext() if device == DEVICE.type else autocast(device, *given, **options)

    with pytest.MonkeyPatch.context() as patch, _Device() as device:
        patch.setattr(torch, "Generator", a_generator)
        patch.setattr(torch, "tensor", a_tensor)
        patch.setattr(torch, "load", loaded)
        patch.setattr(torch, "autocast", rounded)
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: fused)
        yield device.waits
