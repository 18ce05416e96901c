"""What a check is, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "not applicable"]


class NotApplicable(Exception):
    """Raised by a check that finds out on the way that this machine is not for it; says why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that must hold on a machine.

    Attributes:
        name: For `--only`, the table and bug reports.
        holds: What must hold, in a sentence.
        function: `module:function`; it takes a `Setting` and yields a `Measurement` at a time.
        process: Checks of the same process, and what they share, run one after the other in it.
        budget_s: Past this it counts as hanging. The first of a process pays for imports.
        num_cards: That it needs.
        memory_gb: That each of them must have, in GB of 2**30 bytes.
        packages: That must be installed, by the name they are imported by.
        on_cpu: Whether it can be rehearsed without a card.
    """

    name: str
    holds: str
    function: str
    process: str
    budget_s: float
    num_cards: int = 1
    memory_gb: float = 0.0
    packages: tuple[str, ...] = ()
    on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure and its limit; without any limit it is for information.

    Attributes:
        unit: Empty for counts and ratios.
        note: What to know beside, such as a published figure.
    """

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def is_within(self) -> bool:
        """Whether it keeps its limit; what is no finite number keeps none."""
        if not math.isfinite(self.value):
            return False
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one check.

    Attributes:
        reason: Why it failed beside its limits, or why it does not apply; empty otherwise.
        output: The process's last lines, where the check failed.
    """

    check: str
    seconds: float
    measurements: tuple[Measurement, ...] = ()
    reason: str = ""
    applies: bool = True
    output: str = ""

    @property
    def verdict(self) -> Verdict:
        """A check that measured nothing has shown nothing."""
        if not self.applies:
            return "not applicable"
        within = self.measurements and all(one.is_within for one in self.measurements)
        return "passed" if within and not self.reason else "failed"


def overall(outcomes: Sequence[Outcome]) -> Verdict:
    """Of all together: one failure is one; where none applied there is nothing to pass."""
    verdicts = {outcome.verdict for outcome in outcomes}
    if "failed" in verdicts:
        return "failed"
    return "passed" if "passed" in verdicts else "not applicable"
