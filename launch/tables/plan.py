"""A plan as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from launch.tables.format import count, option, outcome, section, size, span, table
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.memory import GIB
from rlhf_ray.planning.advice import Advice
from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.moments import GpuNeed
from rlhf_ray.planning.needs import Engine, RoleNeed
from rlhf_ray.planning.plan import DRIVER, RESULTS, Plan
from rlhf_ray.planning.roles import Batches

# What the parts of memory are called in the heading.
PARTS = {
    "process": ("process",),
    "weights": ("weights",),
    "grads": ("gradients",),
    "adam": ("optimizer",),
    "cache": ("kv_cache",),
    "activ.": ("activations",),
    "logits": ("logits",),
    "buffers": ("buckets", "buffers"),
}
# The same, shorter, for many stages.
SHORT_PARTS = {
    "process": ("process",),
    "states": ("weights", "gradients", "optimizer"),
    "cache": ("kv_cache",),
    "a pass": ("activations", "logits", "buckets", "buffers"),
}
BAR_WIDTH = 20
PIPE_WIDTH = 100
# What "all" cores are.
BY_TURNS = (
    "all: these compute in turn, each with every core of its node; beside a value function with\n"
    "one half, two at a time; with max_staleness above 0 engines have one half of the cores, and\n"
    "the other roles the other"
)
# From this share on a GPU is called tight.
TIGHT_SHARE = 0.85


def print_plan(plan: Plan, advice: Sequence[Advice]) -> None:
    """Placement, memory, batches, and what to change where it does not fit."""
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else PIPE_WIDTH
    blocks = [
        section("Placement, with the node's cores and memory", _placement(plan)),
        section("Memory of one rank, GB", _memory(plan)),
    ]
    if plan.gpus:
        blocks.append(section("GPUs at their fullest moment", _gpus(plan)))
    if plan.held:
        blocks.append(section("Results that wait in the object store, GB", _held(plan)))
    blocks += [section("One step, at the longest rows", _batches(plan)), _conclusion(plan, advice)]
    for block in blocks:
        console.print(block)


def _memory(plan: Plan) -> RenderableType:
    staged = ["stage"] if plan.stages[0].name else []
    columns = SHORT_PARTS if staged else PARTS
    used = {
        name: parts
        for name, parts in columns.items()
        if any(_sum(need, parts) for need in plan.roles)
    }
    beside = ["+ node"] if any(need.host for need in plan.roles) else []
    headings = [*staged, "role", "model", *used, "sum", *beside]
    grid = table(*headings, left=2 + len(staged))
    remarks: list[str] = []
    for stage in plan.stages:
        name = stage.name
        for need in stage.roles:
            grid.add_row(
                *([name] if staged else []),
                need.role,
                _model(need),
                *(size(_sum(need, parts)) for parts in used.values()),
                Text(size(need.memory.total), style="bold"),
                *([size(need.host)] if beside else []),
            )
            name = ""
            remarks += _remarks(need)
    return Group(grid, *(Text(remark, style="dim") for remark in dict.fromkeys(remarks)))


def _sum(need: RoleNeed, parts: Sequence[str]) -> int:
    return sum(need.memory.parts[part] for part in parts)


def _model(need: RoleNeed) -> str:
    match need.model:
        case ModelRank(ranks=ranks) as rank:
            where = f" / {ranks}" if ranks > 1 and rank.section.zero.stage == 3 else ""
            return f"{count(rank.num_parameters)}{where}"
        case Engine(shape=shape) as engine:
            split = f" / {engine.gpus}" if engine.gpus > 1 else ""
            return f"{count(shape.num_parameters('lm'))}{split}"
    return "none"


def _remarks(need: RoleNeed) -> Iterator[str]:
    if need.cache_tokens is not None and isinstance(need.model, Engine):
        tokens, longest = max(0, need.cache_tokens), need.model.max_model_len
        yield (
            f"rollout's cache holds {tokens:,} tokens: {tokens // longest:,} sequences of the "
            f"longest {longest:,}, of {need.model.rollout.max_num_seqs} at a time"
        )


def _gpus(plan: Plan) -> RenderableType:
    grid = table("node", "GPU", "when", "holds", "", "GB", "", left=4)
    grid.columns[3].no_wrap = False
    for gpus in _alike(plan.gpus):
        first = gpus[0]
        share = first.total / plan.cluster.gpu_bytes
        style = "red" if share > 1 else "yellow" if share > TIGHT_SHARE else "green"
        filled = min(BAR_WIDTH, round(share * BAR_WIDTH))
        bar = Text("█" * filled, style=style) + Text("░" * (BAR_WIDTH - filled), style="dim")
        grid.add_row(
            span(sorted({gpu.node for gpu in gpus})),
            span(sorted({gpu.gpu for gpu in gpus})),
            first.moment.words + (f" in {first.stage}" if first.stage else ""),
            ", ".join(f"{role} {size(held)}" for role, held in first.moment.held.items()),
            bar,
            f"{first.total / GIB:.1f}",
            f"of {plan.cluster.gpu_bytes / GIB:g}",
        )
    return grid


def _alike(gpus: Sequence[GpuNeed]) -> list[list[GpuNeed]]:
    """GPUs that hold the same, on nodes where the same numbers do."""
    on_node: dict[tuple[object, ...], list[GpuNeed]] = {}
    for gpu in gpus:
        moment = gpu.moment
        holds = (gpu.stage, moment.role, moment.turn, *moment.held.items())
        on_node.setdefault((gpu.node, *holds), []).append(gpu)
    alike: dict[tuple[object, ...], list[GpuNeed]] = {}
    for (_, *same), some in on_node.items():
        alike.setdefault((*same, *(gpu.gpu for gpu in some)), []).extend(some)
    return list(alike.values())


def _held(plan: Plan) -> RenderableType:
    grid = table("result of", "kept by", "for", "GB", left=3)
    for result in plan.held:
        grid.add_row(result.stage, result.role, ", ".join(result.used_by), size(result.bytes))
    return grid


def _batches(plan: Plan) -> RenderableType:
    grid = table("", "", left=2)
    grid.columns[1].no_wrap = False
    grid.show_header = False
    for stage in plan.stages:
        facts = _facts(stage.batches)
        if stage.name:
            grid.add_row(stage.name, "; ".join(f"{name} {fact}" for name, fact in facts.items()))
            continue
        for name, fact in facts.items():
            grid.add_row(name, fact)
    return grid


def _facts(batches: Batches) -> dict[str, str]:
    facts = {
        "rows": f"{batches.rows:,} of at most {batches.row_tokens:,} tokens: "
        f"{batches.tokens:,} tokens"
    }
    if not batches.optimizer_steps:
        return facts
    return facts | {
        "optimiser steps": f"{batches.optimizer_steps}, of "
        f"{batches.rows_per_optimizer_step:,} rows",
        "micro-batches": f"{batches.micro_batches} a rank and optimiser step, of at most "
        f"{batches.rows_per_micro_batch} rows",
    }


def _conclusion(plan: Plan, advice: Sequence[Advice]) -> RenderableType:
    if plan.fits:
        return _fitting(plan)
    lines: list[RenderableType] = [Text("It does not fit:", style="bold red")]
    lines += [Padding(Text(f"- {problem.message}"), (0, 0, 0, 2)) for problem in plan.problems]
    if not advice:
        lines.append(
            Text("No change of a few keys is enough: take GPUs with more memory, or more.")
        )
        return Group(*lines)
    lines.append(Text("Enough would be any of these changes:", style="bold"))
    for one in advice:
        lines.append(Padding(Text(option(one.change)), (0, 0, 0, 2)))
        lines.append(Padding(Text(f"({outcome(one.plan)})", style="dim"), (0, 0, 0, 4)))
    return Group(*lines)


def _fitting(plan: Plan) -> RenderableType:
    cluster = plan.cluster
    if not plan.gpus and not cluster.node_bytes:
        needed = size(max(plan.host_bytes))
        return Text(f"It takes {needed} GB of a node's memory: --node-memory GB says if it fits.")
    lines = [Text(f"It fits: {outcome(plan)}.", style="bold green")]
    if not cluster.node_bytes:
        lines.append(Text("A node's memory was not checked: --node-memory GB does.", style="dim"))
    return Group(*lines)


def _placement(plan: Plan) -> RenderableType:
    """Roles by node and device, with the node's cores and memory that they take there."""
    grid = table("node", "device", "roles (ranks)", "cores", "GB", left=3)
    grid.columns[2].no_wrap = False
    shown: tuple[int, ...] = ()
    for row in _merged(plan):
        roles = [f"{role} {span(ranks)}" if ranks else role for role, ranks in row.ranks.items()]
        grid.add_row(
            "" if row.nodes == shown else span(row.nodes),
            f"GPU {span(row.gpus)}" if row.gpus else "CPU",
            ", ".join(roles) or "free",
            _cores(plan, row),
            size(row.num_bytes),
        )
        shown = row.nodes
    memory = f"{size(max(plan.host_bytes))} GB of memory"
    where = "" if plan.cluster.nodes == 1 else " on the fullest node"
    actors = f"{len(plan.places)} actors, {plan.reserved_cpus:g} CPU cores reserved"
    lines = [Text(f"{actors}, {memory}{where}", style="dim")]
    if plan.by_turns:
        lines.append(Text(BY_TURNS, style="dim"))
    return Group(grid, *lines)


def _cores(plan: Plan, row: _Row) -> str:
    if plan.by_turns & row.ranks.keys() and not row.gpus:
        return "all"
    return f"{row.cpus:g}" if row.cpus else "-"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Some devices of one node, or of several nodes that are alike.

    Attributes:
        gpus: Their numbers; none for the CPU.
        ranks: Of each role; of what is no role, none.
        num_bytes: Of each node's memory.
    """

    nodes: tuple[int, ...]
    gpus: tuple[int, ...] = ()
    ranks: dict[str, list[int]]
    cpus: float = 0
    num_bytes: int

    def continues(self, other: _Row) -> bool:
        """Whether it is the same as `other` on the next node."""
        return (
            self.nodes[0] == other.nodes[-1] + 1
            and (self.gpus, self.ranks.keys()) == (other.gpus, other.ranks.keys())
            and (self.cpus, self.num_bytes) == (other.cpus, other.num_bytes)
        )


def _merged(plan: Plan) -> list[_Row]:
    """GPUs with the same roles together, then the CPU role by role; equal nodes as one."""
    merged: list[_Row] = []
    for row in _rows(plan):
        index = next((i for i, before in enumerate(merged) if row.continues(before)), None)
        if index is None:
            merged.append(row)
            continue
        before = merged[index]
        ranks = {role: before.ranks[role] + more for role, more in row.ranks.items()}
        merged[index] = replace(before, nodes=before.nodes + row.nodes, ranks=ranks)
    return merged


def _rows(plan: Plan) -> Iterator[_Row]:
    for node, held in enumerate(plan.hosts):
        here = [place for place in plan.places if place.node == node]
        gpus = range(plan.cluster.gpus_per_node)
        for _, some in groupby(gpus, key=lambda gpu: {p.role for p in here if gpu in p.gpus}):
            numbers = tuple(some)
            there = [place for place in here if set(place.gpus) & set(numbers)]
            yield _row(plan, node, there, numbers)
        for role in dict.fromkeys(place.role for place in here if not place.gpus):
            yield _row(plan, node, [place for place in here if place.role == role], ())
        for name in filter(held.__contains__, (DRIVER, RESULTS)):
            yield _Row(nodes=(node,), ranks={name: []}, num_bytes=held[name])


def _row(plan: Plan, node: int, places: Sequence[Place], gpus: tuple[int, ...]) -> _Row:
    ranks: dict[str, list[int]] = {}
    for place in places:
        ranks.setdefault(place.role, []).append(place.rank)
    # A rank whose GPUs are in several rows counts in the first.
    begun = [place for place in places if not gpus or place.gpus[0] in gpus]
    return _Row(
        nodes=(node,),
        gpus=gpus,
        ranks=ranks,
        cpus=sum(plan.cpus[place.role] for place in begun),
        num_bytes=sum(plan.place_bytes(place) for place in begun),
    )
