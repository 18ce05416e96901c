"""What is shown and kept: the table, the line for bug reports, the JSON file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.records import Check, Measurement, Outcome, overall

STYLES = {"passed": "green", "failed": "red", "not applicable": "dim"}


def write_json(
    path: Path,
    outcomes: Sequence[Outcome],
    *,
    machine: Machine,
    scale: str,
    started: str,
    seconds: float,
) -> None:
    """Whole or not at all: whoever reads it meanwhile sees the one before.

    Args:
        path: Of the file.
        outcomes: So far.
        machine: Where they were measured.
        scale: `card` or `rehearsal`.
        started: When, in ISO 8601.
        seconds: So far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "verdict": overall(outcomes),
            "line": line_of(outcomes, machine=machine, scale=scale, seconds=seconds),
            "scale": scale,
            "started": started,
            "seconds": round(seconds, 1),
            "machine": asdict(machine),
            "checks": [_entry(outcome) for outcome in outcomes],
        },
        indent=2,
    )
    part = path.with_suffix(".part")
    part.write_text(text + "\n")
    part.replace(path)


def _entry(outcome: Outcome) -> dict[str, Any]:
    entry = asdict(outcome)
    entry["verdict"] = outcome.verdict
    for measurement, fields in zip(outcome.measurements, entry["measurements"], strict=True):
        fields["is_within"] = measurement.is_within
    return entry


def line_of(outcomes: Sequence[Outcome], *, machine: Machine, scale: str, seconds: float) -> str:
    """All that a bug report needs, in one line."""
    counts: Counter[str] = Counter(outcome.verdict for outcome in outcomes)
    failed = ", ".join(one.check for one in outcomes if one.verdict == "failed")
    told = [f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict]]
    cards = Counter(card.name for card in machine.cards)
    here = " + ".join(f"{num} x {name}" for name, num in cards.items()) or "no NVIDIA GPU"
    if machine.cards:
        here += f", driver {machine.cards[0].driver}"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return " | ".join(
        [
            f"{'gpu-check' if scale == 'card' else 'gpu-check rehearsal'}: {overall(outcomes)}",
            ", ".join(told) + (f" (failed: {failed})" if failed else ""),
            f"{here}, CUDA {machine.cuda or 'none'}, Python {machine.python}",
            f"{versions}{f', commit {machine.commit}' if machine.commit else ''}",
            f"{seconds:.0f} s",
        ]
    )


def table_of(outcomes: Sequence[Outcome], checks: Sequence[Check]) -> Table:
    """A row a measurement; of what failed otherwise, the reason."""
    table = Table("check", "measured", "", "limit", "verdict", "s")
    holds = {check.name: check.holds for check in checks}
    for outcome in outcomes:
        table.add_section()
        verdict = f"[{STYLES[outcome.verdict]}]{outcome.verdict}[/]"
        seconds = f"{outcome.seconds:.0f}" if outcome.applies else ""
        table.add_row(f"[bold]{outcome.check}[/]", holds[outcome.check], "", "", verdict, seconds)
        for one in outcome.measurements:
            style = "" if one.is_within else "red"
            name = escape(f"{one.name} ({one.note})" if one.note else one.name)
            table.add_row("", name, value_of(one), limit_of(one), style=style)
        if outcome.reason:
            table.add_row("", escape(outcome.reason))
    return table


def value_of(measurement: Measurement) -> str:
    """With its unit."""
    return f"{_number(measurement.value)} {measurement.unit}".rstrip()


def limit_of(measurement: Measurement) -> str:
    """In words."""
    bounds = (("at least", measurement.at_least), ("at most", measurement.at_most))
    return ", ".join(f"{word} {_number(bound)}" for word, bound in bounds if bound is not None)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show_failures(console: Console, outcomes: Sequence[Outcome]) -> None:
    """What the processes of failed checks said last."""
    for outcome in outcomes:
        if outcome.verdict == "failed" and outcome.output:
            console.rule(f"{outcome.check}: last lines", align="left")
            console.print(outcome.output, markup=False, highlight=False)
