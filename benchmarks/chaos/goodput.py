"""What a run under kills has made of its time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One of them.

    Attributes:
        at_s: Since the first step was done.
        role: That it hit.
    """

    at_s: float
    role: str


def report(done_s: Sequence[float], kills: Sequence[Kill], *, until_s: float) -> dict[str, Any]:
    """The useful-time share, as JSON.

    Useful are the seconds that as many steps take undisturbed: the median of those before the
    first kill. What a kill has cost are the seconds until the next one, less the useful ones.

    Args:
        done_s: When each new step was done for the first time, since the first of them was.
        kills: In order.
        until_s: When the last kill's time ends.

    Raises:
        ValueError: No whole step was done before the first kill.
    """
    quiet = [at for at in done_s if at <= (kills[0].at_s if kills else until_s)]
    if len(quiet) < 2:
        raise ValueError("a step must be done before the first kill, to compare with: none was")
    step_s = median(after - before for before, after in pairwise(quiet))

    def useful_s(begin_s: float, end_s: float) -> float:
        return step_s * sum(begin_s < at <= end_s for at in done_s)

    lost_s: dict[str, list[float]] = defaultdict(list)
    for kill, next_s in zip(kills, [*(k.at_s for k in kills[1:]), until_s], strict=True):
        lost_s[kill.role].append(next_s - kill.at_s - useful_s(kill.at_s, next_s))
    first_s = kills[0].at_s if kills else 0.0
    useful, total = useful_s(first_s, until_s), until_s - first_s
    return {
        "steps": sum(first_s < at <= until_s for at in done_s),
        "undisturbed_step_s": round(step_s, 3),
        "kills": len(kills),
        "kills_by_role": dict(sorted(Counter(kill.role for kill in kills).items())),
        "lost_s_by_role": {
            role: [round(seconds, 1) for seconds in lost] for role, lost in sorted(lost_s.items())
        },
        "useful_s": round(useful, 1),
        "total_s": round(total, 1),
        "useful_share": round(useful / total, 3),
    }
