"""A folder holds one run: begun with its settings, continued with the same, refused to others.

config.yaml has the settings as given; manifest.json has what they stood for when the run began: versions, hardware,
and digests of the models and data, since a file may change while its name stays.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dfkd.bank import made_from
from dfkd.files import alone_with, make_folder, replace_file
from dfkd.interfaces import Reads, Sampler, Trained, walk
from dfkd.plain import read_yaml

__all__ = ["begun", "claimed", "keep_manifest", "same_models", "what_is_read"]

CONFIG, MANIFEST, LOCK = "config.yaml", "manifest.json", ".lock"
_BEGINNINGS = (CONFIG, MANIFEST, "teacher.safetensors", "control_teacher.safetensors")
_SHOWN = 5  # differences between two runs of one kind
_KINDS = {  # whose settings they are, by the first of these that there is
    "seeds": "dfkd compare",
    "generator": "dfkd train-generator",
    "n": "dfkd synthesize",
    "objective": "dfkd distill",
}
_DIGESTS = {
    "teacher": "teacher",
    "control_teacher": "control teacher",
    "student": "student",
    "data": "data",
    "read": "data",
}


@contextmanager
def claimed(folder: Path, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the folder is this run's, and this process alone writes there. ValueError where it is another's or cannot
    be written, and where another process goes on with the same run.

    Where something goes wrong inside before anything was trained, a folder that was begun here is given up again, so
    that the corrected settings find it free.
    """
    wanted = yaml.safe_load(_text(config))
    existed = folder.exists()
    if not begun(folder):
        make_folder(folder)
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_with(folder / LOCK))
        except BlockingIOError as error:
            raise ValueError(f"out: another process writes in {folder}; wait for it or name another folder") from error
        if begun(folder):
            _refuse_others(folder, wanted)
            yield
            return
        strangers = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if strangers:
            there = f"{folder} is not empty (it holds {strangers[0]}) and holds no run"
            raise ValueError(f"out: {there}; name another folder")
        replace_file(folder / CONFIG, _text(config).encode())
        try:
            yield
        except Exception:  # whatever it was, it is raised on; what is interrupted keeps its folder, to be continued
            _give_up(folder, remove=not existed)
            raise


def begun(folder: Path) -> bool:
    """Whether the folder holds a run."""
    return (folder / CONFIG).exists()


def keep_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes what the run began with, once."""
    if not (folder / MANIFEST).exists():
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        replace_file(folder / MANIFEST, text.encode())


def same_models(folder: Path, manifest: Mapping[str, Any]) -> None:
    """ValueError where the folder's run began with other weights or data under the same names."""
    file = folder / MANIFEST
    if not file.exists():
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        old = {part: (there.get(part) or {}).get("digest") for part in _DIGESTS}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"out: {file} cannot be read ({error}); name another folder") from error
    for part, digest in old.items():
        if digest != (manifest.get(part) or {}).get("digest"):
            raise ValueError(
                f"out: {folder} was begun with another {_DIGESTS[part]} of the same name; name another folder"
            )


def what_is_read(samplers: Iterable[Sampler]) -> dict[str, Any] | None:
    """For a manifest: what samplers read, as it is now, what that was trained on, and what banks were made from.

    None where they read nothing that has a name.
    """
    parts = [part for sampler in samplers for part in walk(sampler)]
    found = {source: part.name for part in parts if isinstance(part, Reads) for source in part.reads}
    if not found:
        return None
    trained = {
        file: dict(data) for part in parts if isinstance(part, Trained) for file, data in part.trained_on().items()
    }
    from dfkd.data import fingerprint  # here, so that a data-free run never imports it

    digests = {}
    for source, reader in found.items():
        try:
            digests[source] = fingerprint(source)
        except ValueError as error:
            raise ValueError(f"{error}, which {reader} reads") from error
    read: dict[str, Any] = {"digest": " ".join(digests.values()), "sources": digests}
    banks = {source: made for source in found if (made := made_from(source)) is not None}
    return read | ({"trained_on": trained} if trained else {}) | ({"banks": banks} if banks else {})


def _text(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _refuse_others(folder: Path, wanted: Mapping[str, Any]) -> None:
    file = folder / CONFIG
    try:
        there = read_yaml(file.read_text(encoding="utf-8"), file.name)
    except (OSError, ValueError) as error:
        raise ValueError(f"out: {file} cannot be read; name another folder ({' '.join(str(error).split())})") from error
    if there == wanted:
        return
    if not isinstance(there, Mapping):
        raise ValueError(f"out: {file} is not of a run; name another folder")
    kind, other = _kind(wanted), _kind(there)
    if None not in (kind, other) and kind != other:
        raise ValueError(f"out: {folder} holds another run, one of `{other}`; name another folder")
    found = _differences(there, wanted)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    differing = ", ".join(found[:_SHOWN]) + more
    raise ValueError(f"out: {folder} holds another run, which differs in {differing}; name another folder")


def _kind(config: Mapping[str, Any]) -> str | None:
    """The command whose settings these are, where it can be told."""
    return next((command for setting, command in _KINDS.items() if setting in config), None)


def _differences(there: Any, wanted: Any, where: str = "") -> list[str]:
    """The dotted keys that differ, the deepest that are names on both sides."""
    if not (isinstance(there, Mapping) and isinstance(wanted, Mapping)):
        return [where] if there != wanted else []
    found = []
    for key in {**there, **wanted}:
        place = f"{where}.{key}" if where else str(key)
        if (key in there) != (key in wanted):
            found.append(place)
        else:
            found += _differences(there[key], wanted[key], place)
    return found


def _give_up(folder: Path, remove: bool) -> None:
    if any(path.name not in (*_BEGINNINGS, LOCK) for path in folder.iterdir()):
        return  # a run has begun in earnest: its settings stay
    for name in (*_BEGINNINGS, LOCK):
        (folder / name).unlink(missing_ok=True)
    if remove:
        with suppress(OSError):
            folder.rmdir()
