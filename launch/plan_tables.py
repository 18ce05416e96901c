"""A job's plan as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rlhf_ray.planning.advice import Advice
from rlhf_ray.planning.job import JobPlan
from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.memory import GIB, MIB
from rlhf_ray.planning.needs import GpuNeed, RoleNeed
from rlhf_ray.planning.work import EngineWork, ModelWork

# What the parts of memory are called in the heading.
PARTS = {
    "process": "process",
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "adam",
    "kv_cache": "cache",
    "activations": "activ.",
    "logits": "logits",
    "buffers": "buffers",
}
BAR_WIDTH = 24
PIPE_WIDTH = 100
# From this share on a GPU is called tight.
TIGHT_SHARE = 0.85


def print_plan(plan: JobPlan, advice: Sequence[Advice], *, console: Console | None = None) -> None:
    """Placement, memory, batches, and what to change where it does not fit."""
    if console is None:
        console = Console(highlight=False)
        console.width = console.width if console.is_terminal else PIPE_WIDTH
    blocks = [
        _section("Placement", _placement(plan)),
        _section("Memory of one rank, GB", _memory(plan)),
    ]
    if plan.gpus:
        blocks.append(_section("GPUs at their fullest moment", _gpus(plan)))
    blocks += [_section("One step, at the longest rows", _batches(plan)), _verdict(plan, advice)]
    for block in blocks:
        console.print(block)


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 1, 2)))


def _table(*headings: str, left: int = 1) -> Table:
    """Its first columns are text, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right", no_wrap=True)
    return table


def _placement(plan: JobPlan) -> RenderableType:
    table = _table("node", "device", "roles (ranks)", left=3)
    table.columns[2].no_wrap = False
    for node in range(plan.cluster.nodes):
        here = [place for place in plan.places if place.node == node]
        shown = f"{node}"
        for devices, roles in _devices(here, plan.cluster.gpus_per_node):
            table.add_row(shown, devices, roles)
            shown = ""
    count = Text(
        f"{plan.num_actors} actors and {plan.cpus:g} CPU cores reserved; memory of the node: "
        + ", ".join(f"{size / GIB:.0f}" for size in plan.host_bytes)
        + " GB",
        style="dim",
    )
    return Group(table, count)


def _devices(places: Sequence[Place], num_gpus: int) -> Iterator[tuple[str, str]]:
    """GPUs with the same roles together, then the CPU."""
    for roles, some in groupby(range(num_gpus), key=lambda gpu: _roles_on(places, gpu)):
        numbers = list(some)
        there = [place for place in places if set(place.gpus) & set(numbers)]
        yield f"GPU {_range(numbers)}", _ranks(there, roles) or "free"
    on_cpu = [place for place in places if not place.gpus]
    if on_cpu:
        yield "CPU", _ranks(on_cpu, tuple(dict.fromkeys(place.role for place in on_cpu)))


def _roles_on(places: Sequence[Place], gpu: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.role for place in places if gpu in place.gpus))


def _ranks(places: Sequence[Place], roles: Sequence[str]) -> str:
    of_role = {role: sorted(p.rank for p in places if p.role == role) for role in roles}
    return ", ".join(f"{role} {_range(ranks)}" for role, ranks in of_role.items())


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _memory(plan: JobPlan) -> RenderableType:
    used = [part for part in PARTS if any(need.memory.parts[part] for need in plan.roles)]
    table = _table("role", "model", *(PARTS[part] for part in used), "sum", left=2)
    notes: list[str] = []
    for need in plan.roles:
        parts = need.memory.parts
        table.add_row(
            need.role,
            _model(need),
            *(_size(parts[part]) for part in used),
            Text(_size(need.memory.total), style="bold"),
        )
        notes += _notes(need)
    return Group(table, *(Text(note, style="dim") for note in notes))


def _model(need: RoleNeed) -> str:
    match need.work:
        case ModelWork(shape=shape, head=head, group=group):
            where = f" / {group.ranks}" if group.ranks > 1 and need.work.zero.stage == 3 else ""
            return f"{_count(shape.num_parameters(head))}{where}"
        case EngineWork(shape=shape, group=group):
            split = f" / {group.gpus_per_rank}" if group.gpus_per_rank > 1 else ""
            return f"{_count(shape.num_parameters('lm'))}{split}"
    return "none"


def _notes(need: RoleNeed) -> Iterator[str]:
    if need.host:
        yield f"{need.role} also has {need.host / GIB:.1f} GB of its node's memory, each rank"
    if need.engine is not None and isinstance(need.work, EngineWork):
        tokens, longest = max(0, need.engine.cache_tokens), need.work.max_model_len
        yield (
            f"rollout's cache holds {tokens:,} tokens: {tokens // longest} sequences of the "
            f"longest {longest:,}, of {need.work.rollout.max_num_seqs} at a time"
        )


def _gpus(plan: JobPlan) -> RenderableType:
    table = _table("node", "GPU", "at work", "holds", "", "GB", "", left=3)
    table.columns[3].justify, table.columns[3].no_wrap = "left", False
    for gpu, number in _distinct(plan.gpus):
        share = gpu.total / plan.cluster.gpu_bytes
        style = "red" if share > 1 else "yellow" if share > TIGHT_SHARE else "green"
        filled = min(BAR_WIDTH, round(share * BAR_WIDTH))
        bar = Text("█" * filled, style=style) + Text("░" * (BAR_WIDTH - filled), style="dim")
        held = ", ".join(f"{role} {_size(size)}" for role, size in gpu.held.items())
        others = f" and {number - 1} like it" if number > 1 else ""
        table.add_row(
            str(gpu.node),
            f"{gpu.gpu}{others}",
            gpu.busy,
            held,
            bar,
            f"{gpu.total / GIB:.1f}",
            f"of {plan.cluster.gpu_bytes / GIB:g}",
        )
    return table


def _distinct(gpus: Sequence[GpuNeed]) -> list[tuple[GpuNeed, int]]:
    """GPUs that hold the same, once, and how many they are."""
    alike: dict[tuple[object, ...], list[GpuNeed]] = {}
    for gpu in gpus:
        alike.setdefault((gpu.busy, *gpu.held.items()), []).append(gpu)
    return [(some[0], len(some)) for some in alike.values()]


def _batches(plan: JobPlan) -> RenderableType:
    batches = plan.batches
    table = _table("", "", left=2)
    rows = {
        "rows": f"{batches.rows:,} of at most {batches.row_tokens:,} tokens: "
        f"{batches.tokens:,} tokens",
        "optimiser steps": f"{batches.optimizer_steps}, of "
        f"{batches.rows_per_optimizer_step:,} rows",
        "micro-batches": f"{batches.micro_batches} a rank and optimiser step, of at most "
        f"{batches.rows_per_micro_batch} rows",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    table.show_header = False
    return table


def _verdict(plan: JobPlan, advice: Sequence[Advice]) -> RenderableType:
    if plan.fits:
        return Text("It fits.", style="bold green")
    lines: list[RenderableType] = [Text("It does not fit:", style="bold red")]
    lines += [Padding(Text(f"- {problem.message}"), (0, 0, 0, 2)) for problem in plan.problems]
    if not advice:
        lines.append(
            Text("No change of a few keys is enough: take GPUs with more memory, or more.")
        )
        return Group(*lines)
    lines.append(Text("Enough would be any of these changes:", style="bold"))
    for one in advice:
        keys = " ".join(f"--{key} {value}" for key, value in one.changes.items())
        more = f"   ({one.nodes} nodes)" if one.nodes > plan.cluster.nodes else ""
        lines.append(Padding(Text(f"{keys}{more}"), (0, 0, 0, 2)))
    return Group(*lines)


def _size(size: int) -> str:
    """In GB; little is not shown as nothing."""
    if not size:
        return "-"
    return f"{size / GIB:.1f}" if size >= 50 * MIB else "<0.1"


def _count(num: int) -> str:
    """Parameters in a few letters: 8.03B, 494M, 0.4M."""
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if num >= unit:
            return f"{num / unit:.3g}{name}"
    return f"{num / 10**6:.1f}M"
