"""The samplers that a scout looks at where none are named: all that need no settings, and composites of them.

Recipes whose first draw takes minutes are looked at with cheaper settings; their labels say with which.
"""

import dataclasses
from importlib import resources

from dfkd import config as configuration
from dfkd.interfaces import Sampler, default_label, walk
from dfkd.plain import read_yaml
from dfkd.registry import SAMPLERS, find

__all__ = ["candidates"]


def candidates(data: str | None, size: int | None) -> tuple[dict[str, Sampler], dict[str, str]]:
    """By label, and by name why the others are left out. data and size: what a teacher was trained on, if it is known.

    Every name of the registry is in one of the two, in a composite at least.
    """
    packaged = read_yaml((resources.files("dfkd") / "scout.yaml").read_text(encoding="utf-8"), "scout.yaml")
    cheaper, composites = (
        [configuration.sampler(spec) for spec in packaged[kind]] for kind in ("cheaper", "composites")
    )
    instead = {sampler.name: (label or sampler.name, sampler) for label, sampler in cheaper}
    made: dict[str, Sampler] = {}
    left: dict[str, str] = {}
    for name in SAMPLERS:
        try:
            shown, sampler = instead[name] if name in instead else (name, _alone(name, data, size))
            made[shown] = sampler
        except ValueError as error:
            left[name] = str(error)
    for label, composite in composites:
        made[label or default_label(composite)] = composite
    covered = {part.name for composite in made.values() for part in walk(composite)}
    return made, {name: reason for name, reason in left.items() if name not in covered}


def _alone(name: str, data: str | None, size: int | None) -> Sampler:
    """The sampler with its defaults; ValueError where it needs a setting, or data that nobody named."""
    cls = find("sampler", name, SAMPLERS)
    if name == "real":
        if data is None:
            raise ValueError("reads data, and the teacher's is not named: samplers=[{real: {data: ...}}]")
        real: Sampler = cls(data=data, size=size)
        return real
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"needs {', '.join(missing)}: samplers=[{{{name}: {{{missing[0]}: ...}}}}]")
    alone: Sampler = cls()
    return alone
