"""The table of a plan that says which rank goes where, and what each node gives to it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from launch.tables.format import size, span, table
from rlhf_ray.planning.devices import device_rows
from rlhf_ray.planning.plan import Plan


def placement(plan: Plan) -> RenderableType:
    """Roles by node and device, with the node's cores and memory that they take there."""
    grid = table("node", "device", "roles (ranks)", "cores", "GB", left=3)
    grid.columns[2].no_wrap = False
    shown: tuple[int, ...] = ()
    for row in device_rows(plan):
        roles = [f"{role} {span(ranks)}" if ranks else role for role, ranks in row.ranks.items()]
        grid.add_row(
            "" if row.nodes == shown else span(row.nodes),
            f"GPU {span(row.gpus)}" if row.gpus else "CPU",
            ", ".join(roles) or "free",
            f"{row.cpus:g}" if row.cpus else "-",
            size(row.num_bytes),
        )
        shown = row.nodes
    memory = f"{size(max(plan.host_bytes))} GB of memory"
    where = "" if plan.cluster.nodes == 1 else " on the fullest node"
    actors = f"{len(plan.places)} actors, {plan.reserved_cpus:g} CPU cores"
    return Group(grid, Text(f"{actors}, {memory}{where}", style="dim"))
