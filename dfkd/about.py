"""What a part says of itself: one sentence and a paper, read from its docstrings."""

import inspect
import re
import sys
from typing import Any

__all__ = ["paper", "summary"]

_PAPER = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:\S+|openreview:\S+|no paper", re.IGNORECASE)


def summary(cls: Any, of_module: bool) -> str:
    """The first sentence of its module where the module is about it alone, else of the class."""
    text = _module(cls) if of_module else (inspect.getdoc(cls) or "")
    return text.strip().split("\n")[0]


def paper(cls: Any) -> str | None:
    """`arXiv:NNNN.NNNNN`, `doi:...`, `openreview:...` or `no paper`, from the docstring of class or else module."""
    for text in (inspect.getdoc(cls) or "", _module(cls)):
        found = _PAPER.search(text)
        if found:
            return found.group().rstrip(".,;)")
    return None


def _module(cls: Any) -> str:
    return inspect.getdoc(sys.modules[cls.__module__]) or ""
