"""How a study ends that is run by `python -m`: bad input is one line on stderr and exit status 2, as of `dfkd`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["in_a_line"]


@contextmanager
def in_a_line(name: str) -> Iterator[None]:
    """What is wrong with the words, files and packages that are met inside is said after the name, and ends it.

    Anything unforeseen keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same words continue", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
