"""A standing pool as a table: a line for each actor."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from actors.pool.record import PoolRecord
from launch.tables.screen import screen

COLUMNS = ("role", "rank", "GPUs", "node", "pid", "state", "model held", "since")


def print_pool(name: str, record: PoolRecord | None) -> None:
    """The table, or that the pool is gone from its cluster."""
    from rich.table import Table

    if record is None:
        print(f"pool {name}: its cluster runs, but its actors are gone; `rlhf-ray pool down`")
        return
    holder = record.holder()
    table = Table(title=f"pool {name}: " + (f"in use by {holder.name}" if holder else "free"))
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows_of(record):
        table.add_row(*row)
    screen().print(table)


def rows_of(record: PoolRecord) -> list[tuple[str, ...]]:
    """One row an actor."""
    state = record.state
    rows: list[tuple[str, ...]] = []
    for role, handle in state.roles.items():
        group = state.groups.get(role)
        hosted = handle.hosted
        gpus = "" if group is None else f"{group.gpus_per_rank}"
        if group is not None and group.share:
            gpus += f" of {group.share}"
        for rank, info in enumerate(record.actor_infos(role)):
            rows.append(
                (
                    role,
                    f"{rank + 1} of {len(handle)}",
                    gpus,
                    *_place(info),
                    hosted.path if hosted else "",
                    time.strftime("%H:%M:%S", time.localtime(hosted.since_s)) if hosted else "",
                )
            )
    return rows


def _place(info: Mapping[str, Any]) -> tuple[str, str, str]:
    """Node, process and state, as the cluster's table of actors has them."""
    return str(info["Address"]["IPAddress"]), str(info["Pid"]), str(info["State"]).lower()
