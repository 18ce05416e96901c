"""Where tables go, how those of a plan look, and how they write numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf_ray.memory import GIB, MIB
from rlhf_ray.planning.advice import Change
from rlhf_ray.planning.plan import Plan

# Of a file or pipe: names and paths stay whole, to be searched and copied.
WIDTH_ELSEWHERE = 240


def screen() -> Console:
    """Standard output, as wide as its terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDTH_ELSEWHERE
    return console


def section(title: str, body: RenderableType) -> RenderableType:
    """A heading, and what belongs to it."""
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 1, 2)))


def table(*headings: str, left: int = 1) -> Table:
    """Its first columns are text, the others numbers."""
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return grid


def size(num_bytes: int) -> str:
    """In GB; little is not shown as nothing."""
    if not num_bytes:
        return "-"
    return f"{num_bytes / GIB:.1f}" if num_bytes >= 50 * MIB else "<0.1"


def count(num: int) -> str:
    """Parameters in a few letters: 8.03B, 494M, 0.4M."""
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if num >= unit:
            return f"{num / unit:.3g}{name}"
    return f"{num / 10**6:.1f}M"


def span(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges: 0-3, 8."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def option(change: Change) -> str:
    """As it is given on the command line."""
    return " ".join(f"--{key} {value}" for key, value in change.items())


def outcome(plan: Plan) -> str:
    """The fullest GPU and node."""
    parts = []
    if plan.gpus:
        fullest = max(gpu.total for gpu in plan.gpus)
        parts.append(f"{size(fullest)} of {plan.cluster.gpu_bytes / GIB:g} GB on the fullest GPU")
    of = f" of {plan.cluster.node_bytes / GIB:g}" if plan.cluster.node_bytes else ""
    parts.append(f"{size(max(plan.host_bytes))}{of} GB of memory on the fullest node")
    nodes = plan.cluster.nodes
    return f"{', '.join(parts)}, {nodes} node{'s' if nodes > 1 else ''}"
