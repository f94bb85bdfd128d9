"""The three packages of this distribution must be its own: their names are common, and a folder may shadow one."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_layout"]


def check_layout() -> None:
    """ValueError naming the folder that hides `samplers` or `generators`."""
    home = Path(__file__).resolve().parent.parent
    for name in ("samplers", "generators"):
        spec = find_spec(name)
        if spec is None:
            raise ValueError(f"{name}: this package of dfkd is missing; install dfkd again in a fresh environment")
        places = list(spec.submodule_search_locations or [])
        if not places or Path(places[0]).resolve().parent != home:
            found = places[0] if places else spec.origin
            raise ValueError(f"{name}: {found} hides dfkd's own package; run from another folder or rename it")
