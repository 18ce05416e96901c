"""A job's data on a terminal: what was recognised, counts, lengths, rows as the job sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from launch.tables.format import screen
from rlhf_ray.data.chat.borders import Span, printable, shortened, spans
from rlhf_ray.data.rows.report import RowReport, histogram
from rlhf_ray.jobs.rows import Look
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, SftExample

TRAINED, OTHER, LOST = "bold green", "dim", "yellow"
MARKS = ("⟦", "⟧")  # of trained tokens, where there are no colours
BAR = 40  # characters of the longest
MOST_OF_A_COLUMN = 300  # characters

# A heading, its style, and what stands below it.
Part = tuple[str, list[Span]]


def print_look(look: Look, prefix: str = "", *, marked: str = "") -> None:
    """One data set.

    Args:
        look: At it.
        prefix: Stands before its key.
        marked: What is marked in its rows, in words; empty for nothing.
    """
    console = screen()
    _line(console, Text.assemble((prefix + look.key, "bold"), f"  {printable(look.report.data)}"))
    for name, value, style in _facts(look):
        _line(console, Text.assemble("  ", (f"{name:<11}", "dim"), (printable(value), style)))
    _line(console, Text())
    for line in _bars(look.lengths):
        _line(console, Text(f"  {line}"))
    _line(console, Text())
    if look.rows and marked:
        shown = _marked([Span(text=marked, is_trained=True)], console)
        _line(console, Text.assemble("Of the rows below, ", shown, " are marked so.\n"))
    for row in look.rows:
        _print_row(console, look.tokenizer, row)


def print_absent(key: str, why: str) -> None:
    """A heading, and why nothing follows."""
    _line(screen(), Text.assemble((key, "bold"), f"  {printable(why)}\n"))


def _facts(look: Look) -> Iterator[tuple[str, str, str]]:
    """Name, value and style, a line each; what goes on has no name."""
    report, limit = look.report, look.limit
    is_whole = not (report.num_left_out or report.num_truncated)
    yield "format", report.format, ""
    yield "rows", _counts(report), "" if is_whole else LOST
    if look.is_streamed:
        yield "", "a stream: these are the first alone, the others are not read", ""
    elif len(look.lengths) != report.num_kept:
        yield "", f"mixed to {len(look.lengths):,}, as sources and data.mixing say", ""
    left_out = sorted(report.left_out.items(), key=lambda item: -item[1].count)
    folder = f"{os.path.dirname(report.data)}/"
    for number, (reason, rows) in enumerate(left_out):
        first = f" (first {rows.first.removeprefix(folder)})" if rows.first else ""
        yield "" if number else "left out", f"{rows.count:,} {reason}{first}", LOST
    allowed = f"{limit.num_tokens:,} tokens ({limit.name}), over_length {limit.over_length}"
    yield "allowed", allowed, ""
    lengths = look.lengths
    tokens = f"{_range(int(lengths.min()), int(lengths.max()), ' to ')} a row"
    yield "tokens", f"{tokens}, median {int(np.median(lengths)):,}", ""


def _counts(report: RowReport) -> str:
    counts = f"{report.num_read:,} read, {report.num_kept:,} kept"
    if num := report.num_left_out:
        counts += f", {num:,} left out ({num / report.num_read:.1%})"
    if num := report.num_truncated:
        counts += f", {num:,} truncated ({num / report.num_kept:.1%})"
    if report.num_pieces:
        counts += f", {report.num_pieces:,} pieces of longer texts"
    return counts


def _bars(lengths: Any) -> Iterator[str]:
    bins = histogram(lengths)
    ranges = [_range(each.first, each.last, "-") for each in bins]
    width, most = max(map(len, ranges)), max(each.count for each in bins)
    for range_, each in zip(ranges, bins, strict=True):
        bar = "█" * -(-each.count * BAR // most)  # few are not shown as none
        yield f"{range_:>{width}}  {bar:<{BAR}}  {each.count:,}".rstrip()


def _range(first: int, last: int, to: str) -> str:
    return f"{first:,}{to}{last:,}" if first < last else f"{first:,}"


def _print_row(console: Console, tokenizer: Any, row: Any) -> None:
    title, parts = _shown(tokenizer, row)
    _line(console, Text(printable(title), style="bold"))
    for heading, shown in parts:
        if heading:
            _line(console, Text(printable(heading), style="cyan"))
        _line(console, _marked(shown, console))
    _line(console, Text())


def _shown(tokenizer: Any, row: Any) -> tuple[str, list[Part]]:
    """A row's title and its parts."""
    match row:
        case SftExample():
            counts = f"{row.num_tokens:,} tokens, {row.num_trained_tokens:,} trained"
            shown = spans(tokenizer, row.token_ids_T.tolist(), row.trained_T.tolist())
            return f"{row.example_id}: {counts}", [("", list(shown))]
        case Ranking():
            margin = f", margin {row.margin:g}" if row.margin else ""
            names = _names(row.order_K)
            answers = zip(names, row.answer_ids_K, strict=True)
            title = f"{row.example_id}: {_and(names)}{margin}"
            return title, _answered(tokenizer, row.prompt_ids_T, list(answers))
        case LabelledAnswer():
            label = "good" if row.desirable else "bad"
            title = f"{row.example_id}: labelled {label}"
            answered = [(f"{label} answer", row.answer_ids_K[0])]
            return title, _answered(tokenizer, row.prompt_ids_T, answered)
        case Prompt():
            return f"{row.prompt_id}: prompt", list(_prompt(tokenizer, row))
    raise TypeError(f"no row of a job: {type(row).__name__}")


def _names(tiers_K: Sequence[int]) -> Sequence[str]:
    """Of the answers of a ranking, the best first."""
    num_answers = len(tiers_K)
    if num_answers <= 2:
        return ("chosen", "rejected") if num_answers == 2 else ("answer",)
    return [
        f"answer {place} of {num_answers}{', tied' * (tiers_K.count(tier) > 1)}"
        for place, tier in enumerate(tiers_K, start=1)
    ]


def _and(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} answers, the best first"


def _answered(tokenizer: Any, prompt_ids_T: Any, answers: Sequence[tuple[str, Any]]) -> list[Part]:
    """The prompt once, then each answer as it stands behind it."""
    prompt = _untrained(tokenizer, prompt_ids_T)
    parts: list[Part] = [(f"prompt, {len(prompt_ids_T):,} tokens", prompt)]
    for name, answer_ids_T in answers:
        ids_T = [*prompt_ids_T, *answer_ids_T]
        trained_T = [False] * len(prompt_ids_T) + [True] * len(answer_ids_T)
        answer = [span for span in spans(tokenizer, ids_T, trained_T) if span.is_trained]
        parts.append((f"{name}, {len(answer_ids_T):,} tokens", answer))
    return parts


def _prompt(tokenizer: Any, prompt: Prompt) -> Iterator[Part]:
    reasons = ", opens a block of reasoning" if prompt.opens_reasoning else ""
    heading = f"the policy goes on from {len(prompt.token_ids_T):,} tokens{reasons}"
    yield heading, _untrained(tokenizer, prompt.token_ids_T)
    given = {"prompt": prompt.text, **prompt.columns}
    lines = "\n".join(f"  {name} = {_value(value)}" for name, value in given.items())
    yield "reward functions get", [Span(text=lines, is_trained=False)]


def _value(value: Any) -> str:
    """On one line."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), MOST_OF_A_COLUMN)


def _untrained(tokenizer: Any, token_ids_T: Any) -> list[Span]:
    return list(spans(tokenizer, token_ids_T, [False] * len(token_ids_T)))


def _marked(shown: Sequence[Span], console: Console) -> Text:
    """Trained tokens in colour, or between marks where there is none; nothing in it is markup."""
    has_colours = console.color_system is not None and not console.no_color
    text = Text()
    for span in shown:
        inside = printable(shortened(span.text))
        if has_colours:
            text.append(inside, TRAINED if span.is_trained else OTHER)
        else:
            text.append(inside.join(MARKS) if span.is_trained else inside)
    return text


def _line(console: Console, text: Text) -> None:
    """As long as it is: a terminal wraps it, and in a file it is searched."""
    console.print(text, soft_wrap=True)
