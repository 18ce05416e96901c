"""Row formats with several answers to one prompt, by their order, their ranks or their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.conversations import aligned, read_prompt_column
from rlhf_ray.data.formats.dialogues import with_helpsteer_turns
from rlhf_ray.data.formats.row_format import Grouping, RowFormat, lists_objects
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.json_values import is_message, unfolded
from rlhf_ray.data.nearest import listed
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import RowError, UnusableRow

# What an answer that is an object may call its text, its rank and its score.
_OWN_KEYS = {
    "answers": ("answer", "response", "text"),
    "ranks": ("rank",),
    "scores": ("score", "overall_score", "pm_score"),
}


def read_ranking(row: Row) -> Iterator[Sample]:
    """`prompt` and `answers`, the best first, or with `ranks` (the lowest is best) or `scores`.

    Answers may be objects that have their own (`{"answer": "4", "rank": 1}`).
    """
    sample = _ranking(row)
    if not sample.levels_K and (numbers := _numbers_of_answers(row)):
        known = ", ".join((*_OWN_KEYS["ranks"], *_OWN_KEYS["scores"]))
        detail = (
            f"each of {row.called('answers')!r} must have one of {known}, or the row ranks or "
            f"scores for all of them; they have {numbers}"
        )
        raise RowError(row.where, "answers without a known rank or score", detail)
    yield sample


def read_scored_ranking(row: Row) -> Iterator[Sample]:
    """`prompt` and `answers` with a score each (UltraFeedback): their order says nothing."""
    sample = _ranking(row)
    if not sample.levels_K:
        known = " or ".join(_OWN_KEYS["scores"])
        detail = (
            f"no object of {row.called('answers')!r} has {known}: give each its score by one of "
            "these names"
        )
        raise RowError(row.where, "no scores", detail)
    yield sample


def _ranking(row: Row) -> Sample:
    if unfolded(row.columns.get("answers")) == []:
        raise UnusableRow(row.where, "no answers")
    row = _with_own_levels(row)
    answers = fields.texts(row, "answers")
    levels = _levels(row, len(answers))
    order = sorted(range(len(levels)), key=lambda index: -levels[index]) or range(len(answers))
    prompt = read_prompt_column(row)
    kept = [aligned(row, prompt, answers[index]) for index in order]
    levels_K = tuple(sorted(levels, reverse=True))
    return Sample.of(row, kept[0][0], *(answer for _, answer in kept), levels_K=levels_K)


def _numbers_of_answers(row: Row) -> str:
    """Names of what may rate answers that are objects, as an error lists them."""
    names = dict.fromkeys(
        repr(name)
        for answer in fields.items(row, "answers")
        if isinstance(answer, dict) and not is_message(answer)
        for name, value in answer.items()
        if isinstance(value, int | float)
    )
    return ", ".join(names)[:200]


def _levels(row: Row, num_answers: int) -> list[float]:
    """How good each answer is, the higher the better; empty where their order says it."""
    given: dict[str, list[float]] = {}
    there: list[str] = [name for name in ("scores", "ranks") if name in row.columns]
    for name in [name for name in there if not fields.is_blank(row, name)] or there[:1]:
        sign = 1 if name == "scores" else -1
        given[name] = [sign * level for level in fields.numbers(row, name)]
    for name, levels in given.items():
        if len(levels) != num_answers:
            wanted = f"{num_answers} answers need as many in {row.called(name)!r}"
            raise RowError(row.where, "wrong number of ranks", f"{wanted}, got {len(levels)}")
    if len(given) == 2 and _order(given["scores"]) != _order(given["ranks"]):
        scores, ranks = map(row.called, given)
        detail = (
            f"{scores!r} (the highest is best) and {ranks!r} (the lowest is best) tell different "
            "orders: take one of the columns away"
        )
        raise RowError(row.where, "ranks and scores that differ", detail)
    return next(iter(given.values()), [])


def _order(levels: Sequence[float]) -> list[int]:
    return [sum(other > level for other in levels) for level in levels]


def _with_own_levels(row: Row) -> Row:
    """The row with ranks or scores beside its answers, where each answer has its own."""
    answers = fields.items(row, "answers")
    if not all(isinstance(answer, dict) and not is_message(answer) for answer in answers):
        return row
    columns, names = dict(row.columns), dict(row.names)
    for name, keys in _OWN_KEYS.items():
        key = next((key for key in keys if any(key in answer for answer in answers)), None)
        if key is not None:
            columns[name] = [answer.get(key) for answer in answers]
            names[name] = f"{row.called('answers')}.{key}"
    if not set(_OWN_KEYS["answers"]) & set().union(*answers):
        known = " or ".join(_OWN_KEYS["answers"])
        wanted = f"an answer that is an object must have {known}, or role and content"
        raise RowError(row.where, "wrong type", f"{wanted}, got {listed(answers[0])}")
    return replace(row, columns=columns, names=names)


def _listed(group: list[Row]) -> Row:
    """Every column but the prompt as the list of its values."""
    names = dict.fromkeys(name for row in group for name in row.columns)
    values: Columns = {name: [row.columns.get(name) for row in group] for name in names}
    return replace(group[0], columns={**values, "prompt": group[0].columns.get("prompt")})


RANKING_FORMATS = (
    RowFormat(
        name="ultrafeedback", kind="preferences", columns=("instruction", "completions"),
        fits=lambda columns: unfolded(columns["completions"]) == []
        or lists_objects("completions", "response")(columns),
        names={"prompt": "instruction", "answers": "completions"},
        read=read_scored_ranking, prompt_columns=("instruction",),
    ),
    RowFormat(
        name="helpsteer", kind="preferences", columns=("prompt", "response", "helpfulness"),
        group=Grouping(key="prompt", join=_listed),
        names={"answers": "response", "scores": "helpfulness"},
        prepare=with_helpsteer_turns, read=read_ranking, reads_prompt=True,
    ),
    RowFormat(
        name="stack_exchange", kind="preferences", columns=("question", "answers"),
        fits=lists_objects("answers", "text", "pm_score"), names={"prompt": "question"},
        read=read_scored_ranking, prompt_columns=("question",),
    ),
    RowFormat(
        name="ranking", kind="preferences", columns=("prompt", "answers"), read=read_ranking,
    ),
)  # fmt: skip
