"""A teacher from what a user brings, and students saved and given back; weights never travel through pickle."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from dfkd.files import replacing
from dfkd.types import InputSpec

from .build import build
from .normalise import Normalisation, Normalised, resolve
from .weights import METADATA_KEY, fit, read_metadata, read_tensors

__all__ = ["load", "load_teacher", "read_card", "read_spec", "save"]

Reference = str | nn.Module | Callable[..., nn.Module]


def load_teacher(
    reference: Reference | None,
    spec: InputSpec,
    weights: str | Path | None = None,
    normalise: Normalisation | None = None,
    **options: Any,
) -> nn.Module:
    """A network that takes pixels, in evaluation mode.

    reference: a name of MODELS, `package.module:function`, `torchvision:NAME`, a factory or a network; None takes the
    one named in the weights file. weights: safetensors or a `weights_only` state dict. normalise: a name of
    NORMALISATIONS or (mean, std), wrapped around the network; files that `save` wrote bring their own.
    """
    path = None if weights is None else Path(weights)
    saved = None if path is None else read_metadata(path)
    if saved is not None:
        _same_problem(saved, spec, path)
        if saved["normalisation"] is not None:
            if normalise is not None and _differ(resolve(normalise, spec), saved["normalisation"]):
                raise ValueError(f"normalise: {path} has its own normalisation, {saved['normalisation']}")
            normalise = None
    if reference is None:
        reference = _named_in(saved, path)
    if saved is not None and isinstance(reference, str) and reference == saved["reference"]:
        options = {**saved["options"], **options}
    module = _as_module(reference, spec, options)
    if normalise is not None and isinstance(module, Normalised):
        raise ValueError("normalise: the network given is Normalised already")
    if saved is not None and saved["normalisation"] is not None and not isinstance(module, Normalised):
        module = Normalised(module, *saved["normalisation"])
    if path is not None:
        fit(module, read_tensors(path), path, reference if isinstance(reference, str) else type(module).__name__)
    if normalise is not None:
        module = Normalised(module, *resolve(normalise, spec))
    return module.eval()


def save(
    path: str | Path,
    module: nn.Module,
    *,
    reference: str | None,
    spec: InputSpec,
    options: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Writes the weights, and beside them how to build the network again; an older file is replaced at once or not.

    reference: what `build` takes; None where it is not known by name, and `load` then needs `model=`.
    """
    path = Path(path)
    normalisation = None
    if isinstance(module, Normalised):
        normalisation = [module.mean.tolist(), module.std.tolist()]
    about = {
        "reference": reference,
        "options": dict(options or {}),
        "spec": asdict(spec),
        "normalisation": normalisation,
        "card": dict(card or {}),
    }
    try:
        text = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"card, options: expected values that JSON can hold, found: {error}") from None
    # a tied parameter is stored under each of its names, each with memory of its own
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
    try:
        with replacing(path, "save") as draft:
            save_file(tensors, draft, metadata={METADATA_KEY: text})
    except SafetensorError as error:
        raise ValueError(f"save: cannot write {path}: {error}") from error


def load(path: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """The network that `save` wrote: takes pixels, in evaluation mode.

    model: the network, or a function without arguments that builds it, where the file cannot name it.
    """
    path = Path(path)
    saved = _require_saved(path)
    spec = _spec(saved)
    if model is not None:
        reference: Reference | None = model
        return load_teacher(reference, spec, weights=path)
    if saved["reference"] is None:
        raise ValueError(f"model: {path} does not say how its network is built; pass it as model=")
    return load_teacher(None, spec, weights=path)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card that `save` was given."""
    card: dict[str, Any] = _require_saved(Path(path))["card"]
    return card


def read_spec(path: str | Path) -> InputSpec:
    """The images and classes of a saved network."""
    return _spec(_require_saved(Path(path)))


def _as_module(reference: Reference, spec: InputSpec, options: dict[str, Any]) -> nn.Module:
    if not isinstance(reference, nn.Module):
        return build(reference, spec, **options)
    if options:
        raise ValueError(f"options: a network that is built already takes none, found {sorted(options)}")
    return reference


def _named_in(saved: dict[str, Any] | None, path: Path | None) -> str:
    if saved is None or saved["reference"] is None:
        where = "no weights file says" if path is None else f"{path} does not say"
        raise ValueError(f"model: expected a name, as {where} how the network is built")
    return str(saved["reference"])


def _same_problem(saved: dict[str, Any], spec: InputSpec, path: Path | None) -> None:
    theirs = _spec(saved)
    for name in ("shape", "num_classes", "low", "high"):
        expected, found = getattr(spec, name), getattr(theirs, name)
        if expected != found:
            raise ValueError(f"weights: {path} is for {name} {found}, the data has {expected}")


def _differ(ours: tuple[tuple[float, ...], tuple[float, ...]], theirs: list[list[float]]) -> bool:
    return any(
        abs(a - b) > 1e-6 for mine, saved in zip(ours, theirs, strict=True) for a, b in zip(mine, saved, strict=True)
    )


def _require_saved(path: Path) -> dict[str, Any]:
    saved = read_metadata(path)
    if saved is None:
        raise ValueError(f"{path}: expected a file written by dfkd.models.save, found one without its metadata")
    return saved


def _spec(saved: dict[str, Any]) -> InputSpec:
    spec = saved["spec"]
    names = spec["class_names"]
    shape = tuple(spec["shape"])
    return InputSpec(shape, spec["num_classes"], spec["low"], spec["high"], None if names is None else tuple(names))
