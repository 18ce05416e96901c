"""What is kept of a run: a file of results, and the table that is written from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.table import Benchmark

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
FIELDS = {"ratio", "goal", "holds", "pairs"}

Result = dict[str, Any]


def result_in(text: str) -> Result:
    """The JSON object that a benchmark printed, behind whatever libraries said.

    Raises:
        ValueError: There is none, or not what a benchmark gives.
    """
    start = text.rfind("\n{") + 1
    try:
        result = json.loads(text[start:])
    except ValueError:
        raise ValueError(f"no JSON object at the end of {text[-200:]!r}") from None
    if not isinstance(result, dict) or not result.keys() >= FIELDS:
        raise ValueError(f"a result must have {', '.join(sorted(FIELDS))}, got {text[start:]!r}")
    if not math.isfinite(result["ratio"]):
        raise ValueError(f"ratio must be finite, got {result['ratio']}")
    return result


def read(path: Path) -> dict[str, Result]:
    """Results by name; none where no file is."""
    found: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write(path: Path, results: Mapping[str, Result], benchmarks: Sequence[Benchmark]) -> None:
    """In the order of the benchmarks; what is none any more is left out."""
    kept = {one.name: results[one.name] for one in benchmarks if one.name in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(kept, indent=1) + "\n")
    aside.replace(path)


def table_of(results: Mapping[str, Result], benchmarks: Sequence[Benchmark]) -> str:
    """Markdown, a row a benchmark."""
    lines = [
        "| benchmark | compared | ratio | goal | holds |",
        "|---|---|---|---|---|",
    ]
    for one in benchmarks:
        result = results.get(one.name)
        if result is None:
            ratio, goal, holds = "not measured yet", "", ""
        elif "error" in result:
            ratio, goal, holds = "failed", "", "no"
        else:
            ratio = f"{result['ratio']:.3g}"
            goal = f"{one.bound} {result['goal']:g}"
            holds = "yes" if result["holds"] else "**no**"
        lines.append(f"| `{one.name}` | {one.compares} | {ratio} | {goal} | {holds} |")
    return "\n".join(lines)


def write_table(page: Path, table: str) -> None:
    """Put it in the place of the one between the page's two marks.

    Raises:
        ValueError: The page does not have them once each.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} must have {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    behind = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{behind}")
