"""Plain values from YAML as people write it: a key that is written twice is refused, where readers take the last."""

from typing import Any

import yaml

__all__ = ["read_yaml"]


class _Twice(Exception):
    """Where a key stands, and where it stood before."""


class _Strict(yaml.SafeLoader):
    """Looks at the mappings as they are written: what `<<` brings in comes later, and may be laid over."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                where = f"in lines {lines[name]} and {line}" if line != lines[name] else f"twice in line {line}"
                raise _Twice(f"{key.value!r} {where}")
            lines[name] = line
        return node


def read_yaml(text: str, where: str) -> Any:
    """What `yaml.safe_load` gives; ValueError in one line that begins with `where`, the file's name or so."""
    try:
        return yaml.load(text, Loader=_Strict)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise ValueError(f"{where}: not YAML{line}: {problem}") from error
    except _Twice as error:
        raise ValueError(f"{where}: expected each key once, found {error}; leave one of them out") from error
    except (ValueError, KeyError, RecursionError) as error:  # a day that is in no calendar, and the like
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
