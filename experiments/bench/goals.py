"""What a step may take at most, in steps of a bare loop: shares of what existing implementations take.

no paper. These were measured beside a bare loop on one machine; absolute times differ between machines, ratios to the
bare loop less, so each is divided by the bare loop's. Which time is which follows from what has to be computed: the
bare synthesis step is the longer, as it goes through WRN-40-2 forward and backward, where a student step goes through
it forward alone; and CMI, which asks the teacher twice in a synthesis step, took 4.6. That bare loop's teacher was not
frozen, as far as the times tell: DeepInversion, whose public code freezes nothing, took just as long.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["BARE", "EXISTING", "SHARE", "Goal", "Step", "goal"]

Step = Literal["student", "synthesis"]

BARE: dict[Step, float] = {"synthesis": 1.66, "student": 0.40}

EXISTING: dict[str, dict[Step, tuple[float, float]]] = {
    "dfq": {"synthesis": (2.0, 2.5), "student": (0.81, 0.94)},
    "deep_inversion": {"synthesis": (1.66, 1.66), "student": (0.76, 0.98)},
    "cmi": {"synthesis": (4.6, 4.6), "student": (0.64, 1.10)},
    "fast_dfkd": {"synthesis": (1.97, 1.97), "student": (0.69, 1.13)},
}
"""Seconds of the quickest and the slowest."""

SHARE: dict[str, dict[Step, float]] = {
    name: {"synthesis": 0.5 if name == "cmi" else 0.7, "student": 0.5} for name in EXISTING
}


@dataclass(frozen=True)
class Goal:
    """existing: what the quickest and the slowest implementation take, in bare steps. share: what of it we may take."""

    existing: tuple[float, float]
    share: float

    @property
    def most(self) -> tuple[float, float]:
        """The ratio we may have to the bare loop: against the quickest, against the slowest."""
        quickest, slowest = self.existing
        return self.share * quickest, self.share * slowest

    def met(self, ratio: float) -> str:
        """`yes` against every existing implementation, `partly` against the slowest alone, `no`."""
        strict, lax = self.most
        return "yes" if ratio <= strict else "partly" if ratio <= lax else "no"


def goal(sampler: str, step: Step) -> Goal | None:
    """None where no existing implementation was measured."""
    if sampler not in EXISTING:
        return None
    quickest, slowest = (seconds / BARE[step] for seconds in EXISTING[sampler][step])
    return Goal((quickest, slowest), SHARE[sampler][step])
