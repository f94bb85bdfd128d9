"""dfkd: distil a teacher without its data, and see on which inputs the student matches it.

Names are loaded when they are first used, so that `dfkd --help` imports neither torch nor anything that does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Batch": "dfkd.types",
    "InputSpec": "dfkd.types",
    "Outputs": "dfkd.types",
    "Probe": "dfkd.problem",
    "Problem": "dfkd.problem",
    "UnsupportedProblem": "dfkd.problem",
    "combine": "dfkd.losses",
    "Budget": "dfkd.engine",
    "Optimiser": "dfkd.engine",
    "compare": "dfkd.comparison",
    "Evaluation": "dfkd.comparison",
    "distill": "dfkd.schemes",
    "load": "dfkd.models",
    "load_teacher": "dfkd.models",
    "scout": "dfkd.scouting",
}

__all__ = [
    "Batch",
    "Budget",
    "Evaluation",
    "InputSpec",
    "Optimiser",
    "Outputs",
    "Probe",
    "Problem",
    "UnsupportedProblem",
    "__version__",
    "combine",
    "compare",
    "distill",
    "load",
    "load_teacher",
    "scout",
]

if TYPE_CHECKING:
    from dfkd.comparison import Evaluation, compare
    from dfkd.engine import Budget, Optimiser
    from dfkd.losses import combine
    from dfkd.models import load, load_teacher
    from dfkd.problem import Probe, Problem, UnsupportedProblem
    from dfkd.schemes import distill
    from dfkd.scouting import scout
    from dfkd.types import Batch, InputSpec, Outputs


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dfkd' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
