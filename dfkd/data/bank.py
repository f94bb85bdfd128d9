"""A bank that `dfkd synthesize` wrote, as images to train on: labelled by the teacher, and with nothing to test on."""

import warnings
from pathlib import Path

import torch

from dfkd.bank import INDEX, read_index, shards

from .arrays import Splits

__all__ = ["read_bank"]


def read_bank(folder: Path) -> Splits:
    """All rows are to train on and none to test on: the teacher's own words about draws are no test of anything.

    A bank whose writing was interrupted is read as far as it goes, with a warning.
    """
    index = read_index(folder)
    if index["rows"] < index["wanted"]:
        warnings.warn(
            f"data: {folder} holds {index['rows']} of the {index['wanted']} rows that were asked for; the command that "
            "began it makes the others",
            UserWarning,
            stacklevel=2,
        )
    read = [(shard["x"], shard["label"]) for shard in shards(folder, index)]
    if not read:
        raise ValueError(f"data: {folder / INDEX}: expected at least one shard, found none")
    x, y = (torch.cat(part) for part in zip(*read, strict=True))
    classes = index.get("class_names") or [str(number) for number in range(index["num_classes"])]
    return Splits(x, y, x[:0], y[:0], tuple(map(str, classes)))
