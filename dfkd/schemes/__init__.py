"""Who teaches whom."""

from dfkd.schemes.ensemble import Ensemble
from dfkd.schemes.from_teacher import FromTeacher
from dfkd.schemes.offline import Distilled, distill, make_student
from dfkd.schemes.stages import Chain, chain
from dfkd.schemes.together import Together

__all__ = ["Chain", "Distilled", "Ensemble", "FromTeacher", "Together", "chain", "distill", "make_student"]
