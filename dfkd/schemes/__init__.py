"""Who teaches whom."""

from dfkd.schemes.offline import Distilled, distill, make_student

__all__ = ["Distilled", "distill", "make_student"]
