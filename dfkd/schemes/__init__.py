"""Who teaches whom."""

from dfkd.schemes.offline import Distilled, distill, make_student
from dfkd.schemes.together import Together

__all__ = ["Distilled", "Together", "distill", "make_student"]
