"""Where the time of steps went: what each role did, as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import rich
from rich.table import Table

from rlhf_ray.metrics.spans import ASKED, Span, idle_s
from rlhf_ray.metrics.spans_file import WrittenSpan
from rlhf_ray.metrics.trace import role_order


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one role did in some steps.

    Attributes:
        operation: Empty for all that it did.
        num: Spans of it, on all ranks.
        seconds: In which a rank did it, in the mean of the role's ranks; what overlaps counts once.
        share: Of the steps' time.
    """

    role: str
    operation: str
    num: int
    seconds: float
    share: float


def print_spans(spans: Sequence[WrittenSpan]) -> None:
    """Print it; nothing where there is no whole step."""
    steps = steps_of(spans)
    if not steps:
        return
    whole_s = sum(step.seconds for step in steps)
    title = f"{len(steps)} steps, {whole_s / len(steps):.2f} s each"
    table = Table(title=title)
    for column in ("role", "operation", "times", "seconds a step", "share"):
        is_number = column not in ("role", "operation")
        table.add_column(column, justify="right" if is_number else "left")
    for spent in time_spent(spans):
        is_whole = not spent.operation
        table.add_row(
            spent.role if is_whole else "",
            spent.operation,
            "" if is_whole else str(spent.num),
            f"{spent.seconds / len(steps):.3f}",
            f"{spent.share:.1%}",
            style="bold" if is_whole else "",
        )
    rich.print(table)


def steps_of(spans: Sequence[WrittenSpan]) -> list[Span]:
    """The steps themselves."""
    return [one.span for one in spans if one.role == "driver" and one.span.operation == "step"]


def time_spent(spans: Sequence[WrittenSpan]) -> Iterator[Spent]:
    """By role, the whole first and then the operation that took most.

    The driver's waits for a role are that role's own spans, and left out. So is what was done
    outside of the steps.
    """
    steps = steps_of(spans)
    whole_s = sum(step.seconds for step in steps)
    own = [one for one in spans if one.span.operation != "step" and ASKED not in one.span.labels]
    for role in sorted({one.role for one in own}, key=role_order):
        of_role = [one for one in own if one.role == role]
        num_ranks = len({(one.node, one.rank) for one in of_role})
        by_operation: dict[str, list[WrittenSpan]] = defaultdict(list)
        for one in of_role:
            by_operation[one.span.operation].append(one)
        spent = [
            Spent(
                role=role,
                operation=operation,
                num=len(done),
                seconds=(seconds := _busy_s(done, steps) / num_ranks),
                share=seconds / whole_s,
            )
            for operation, done in [("", of_role), *by_operation.items()]
        ]
        yield spent[0]
        yield from sorted(spent[1:], key=lambda one: -one.seconds)


def _busy_s(spans: Sequence[WrittenSpan], steps: Sequence[Span]) -> float:
    """Seconds of steps in which something was done, summed over ranks."""
    between = [
        Span(operation="", start_ns=before.end_ns, end_ns=after.start_ns)
        for before, after in pairwise(steps)
    ]
    by_rank: dict[tuple[str, int], list[Span]] = defaultdict(list)
    for one in spans:
        by_rank[one.node, one.rank].append(one.span)
    window = {"since_ns": steps[0].start_ns, "until_ns": steps[-1].end_ns}
    whole_s = sum(step.seconds for step in steps)
    return sum(whole_s - idle_s([*done, *between], **window) for done in by_rank.values())
