"""torchvision's data sets by name, from a folder where they are already; fetched only where that is asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arrays import Splits

__all__ = ["DOWNLOAD_VARIABLE", "ROOT_VARIABLE", "TORCHVISION", "read_torchvision"]

_TRAIN = ({"train": True}, {"train": False})
_SPLIT = ({"split": "train"}, {"split": "test"})

TORCHVISION: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MNIST": _TRAIN,
    "FashionMNIST": _TRAIN,
    "KMNIST": _TRAIN,
    "CIFAR10": _TRAIN,
    "CIFAR100": _TRAIN,
    "SVHN": _SPLIT,
    "STL10": _SPLIT,
}
"""Name in torchvision.datasets -> the arguments for what to train and to test on."""

ROOT_VARIABLE, DOWNLOAD_VARIABLE = "DFKD_DATA", "DFKD_DOWNLOAD"


def read_torchvision(name: str) -> Splits:
    """From the folder DFKD_DATA (else `data` here); fetched where DFKD_DOWNLOAD=1."""
    from torchvision import datasets  # two seconds, and only here

    root = Path(os.environ.get(ROOT_VARIABLE, "data"))
    download = os.environ.get(DOWNLOAD_VARIABLE, "") == "1"
    try:
        train, test = (getattr(datasets, name)(root, download=download, **given) for given in TORCHVISION[name])
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"data: {name} is not in {root} ({reason}); set {ROOT_VARIABLE} to where it is, "
            f"or {DOWNLOAD_VARIABLE}=1 to fetch it"
        ) from None
    labels = train.classes if hasattr(train, "classes") else range(10)
    return Splits(_images(train.data), _labels(train), _images(test.data), _labels(test), tuple(map(str, labels)))


def _images(data: Any) -> Tensor:
    """(n, h, w), (n, h, w, 3) or (n, 3, h, w), a tensor or an array -> (n, c, h, w)."""
    x = torch.as_tensor(data)
    if x.ndim == 3:
        return x[:, None]
    return x if x.shape[1] == 3 else x.permute(0, 3, 1, 2).contiguous()


def _labels(part: Any) -> Tensor:
    return torch.as_tensor(part.targets if hasattr(part, "targets") else part.labels, dtype=torch.int64)
