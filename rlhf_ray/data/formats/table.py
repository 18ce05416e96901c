"""The formats of rows that there are: which of them a row is of, and what it says by that."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlhf_ray.data.columns import file_names, resolved
from rlhf_ray.data.formats import fields
from rlhf_ray.data.formats.advice import advice
from rlhf_ray.data.formats.choices import hold_turn_lists
from rlhf_ray.data.formats.conversations import is_chat_beside
from rlhf_ray.data.formats.dialogues import with_turns
from rlhf_ray.data.formats.pairs import CHOICE_FORMATS, PAIR_FORMATS
from rlhf_ray.data.formats.rankings import RANKING_FORMATS
from rlhf_ray.data.formats.row_format import Kind, RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.formats.texts import TEXT_FORMATS
from rlhf_ray.data.nearest import quoted, words
from rlhf_ray.data.row import Columns, Row
from rlhf_ray.errors import DataError, RowError

# The first whose columns a row has is the one it shows.
ROW_FORMATS: Mapping[str, RowFormat] = {
    format_.name: format_
    for format_ in (*CHOICE_FORMATS, *RANKING_FORMATS, *PAIR_FORMATS, *TEXT_FORMATS)
}
_READ_OF_PROMPTS = {
    "prompt", "messages", "system", "tools", "chat_template_kwargs", "enable_thinking",
}  # fmt: skip
# What rows may have beside the columns by which a format is recognised, and rewards are given.
_OPTIONAL = {
    "answer", "history", "input", "margin", "ranks", "scores", "score_chosen", "score_rejected",
    "chosen_score", "rejected_score", "truncated", "truncated_chosen", "truncated_rejected",
}  # fmt: skip
_READ = _READ_OF_PROMPTS | _OPTIONAL
_READ |= {
    name
    for each in ROW_FORMATS.values()
    for name in (*each.columns, *each.prompt_columns, *each.names)
}
# Pairs of texts, by what the texts are called.
_SIDES = {"choice": ("a", "b"), "scored_choice": ("a", "b"), "preference": ("chosen", "rejected")}
# Columns that hold the answer to a column `text`.
_ANSWERS = ("response", "completion", "output", "answer", "target", "summary", "reply")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# What a text says where a picture belongs, and names of the column that then holds it.
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MEDIA_WORDS = {*_MEDIA, "img", "imgs", "picture", "pictures", "photo", "photos", "sound", "wav"}


def recognise(row: Row, *, kinds: Collection[Kind], what: str = "examples") -> RowFormat:
    """The format that a first row's columns show: the first of the table that the job can take.

    For a job that takes prompts a column `prompt` is the prompt, whatever stands beside it.

    Raises:
        RowError: The columns show none.
        DataError: They show one that the job cannot take.
    """
    columns = row.columns
    shown = [each for each in ROW_FORMATS.values() if each.shown_by(columns)]
    if not shown:
        raise RowError(row.where, "no known format has these columns", advice(row, kinds, what))
    is_prompt = "prompts" in kinds and isinstance(columns.get("prompt"), str | list)
    if is_prompt and not shown[0].reads_prompt:
        return ROW_FORMATS["prompt"]
    taken = next((each for each in shown if each.kind in kinds), None)
    if taken is None or _is_judged(shown[0], columns, kinds):
        raise refusal(row, shown[0], kinds, what, beside=taken)
    if taken.name == "text" and not is_prompt and (answer := _answer_beside(columns, kinds)):
        text, answer = row.called("text"), row.called(answer)
        raise DataError(
            f"{row.where}: column {text!r} has {answer!r} beside it: to train that as the answer "
            f"set data.columns: {{prompt: {quoted(text)}, completion: {quoted(answer)}}}; to train "
            f"{text} alone, as a whole, set data.format: text"
        )
    _refuse_turn_lists(row, taken)
    return taken


def _refuse_turn_lists(row: Row, taken: RowFormat) -> None:
    """Refuse pairs of texts that are lists of turns: they would be trained as they are written."""
    sides = _SIDES.get(taken.name)
    if sides and hold_turn_lists(row.columns, ("prompt", *sides)):
        called = ", ".join(repr(row.called(name)) for name in ("prompt", *sides))
        raise DataError(
            f"{row.where}: {called} are lists of turns: call them prompt, response_a and "
            "response_b by data.columns, with winner beside them (model_a, model_b, tie), which is "
            "read as arena_texts; to train the lists as they are written set data.format: "
            f"{taken.name}"
        )


def check_names(row: Row, kinds: Collection[Kind]) -> None:
    """Refuse names of the configuration that nothing reads, where one that is read lies near.

    Of a job that takes prompts, reward functions may read any name, `tool` beside `tools` as well.

    Raises:
        DataError: One is misspelt.
    """
    read = _READ_OF_PROMPTS if "prompts" in kinds else _READ
    for ours, theirs in row.names.items():
        if ours in _READ:
            continue
        near = difflib.get_close_matches(ours, sorted(read - row.columns.keys()), n=1, cutoff=0.8)
        if near and not ("prompts" in kinds and ours.rstrip("s") == near[0].rstrip("s")):
            raise DataError(
                f"{row.where}: data.columns calls {theirs!r} {ours!r}, a name that nothing here "
                f"reads; did you mean data.columns: {{{near[0]}: {quoted(theirs)}}}?"
            )


def refusal(
    row: Row,
    shown: RowFormat,
    kinds: Collection[Kind],
    what: str,
    *,
    beside: RowFormat | None = None,
) -> DataError:
    """What a job says of a format that it cannot take.

    It could take rows of `beside`, if their label did not count.
    """
    used = ", ".join(row.called(name) for name in row.columns if name in shown.columns)
    message = f"{row.where}: {what} cannot be made of {shown.name} rows ({used})"
    if beside is not None:
        return DataError(
            f"{message}: their label says which are good and which are bad, and all would be "
            f"trained; that is for dpo with loss_type [kto]. To train all, set data.format: "
            f"{beside.name}"
        )
    if shown.note and shown.kind == "prompts":
        return DataError(f"{message}: {shown.note}")
    if shown.kind == "labels" and "preferences" in kinds:
        return DataError(
            f"{message}: answers that are labelled one by one are for dpo with loss_type [kto]; "
            f"{what} are two or more answers to one prompt"
        )
    return DataError(f"{message}: {advice(row, kinds, what)}")


def _is_judged(shown: RowFormat, columns: Columns, kinds: Collection[Kind]) -> bool:
    """Whether rows have a label of good or bad that the job would not see.

    Prompts are as good as others; a label may also be any other column of that name.
    """
    if shown.kind != "labels" or {"labels", "prompts"} & set(kinds):
        return False
    return fields.is_truth(columns["label"])


def _answer_beside(columns: Columns, kinds: Collection[Kind]) -> str:
    """The column that plainly answers the column `text`; empty for a job that takes prompts."""
    if "prompts" in kinds:
        return ""
    return next((name for name in _ANSWERS if isinstance(columns.get(name), str)), "")


def samples(format_: RowFormat, row: Row, *, chat: bool) -> Iterator[Sample | RowError]:
    """What a row of a format says, given `chat` of the configuration.

    Raises:
        RowError: It is malformed, or has pictures or sound.
    """
    refuse_media(row)
    row = replace(
        row,
        columns=row.columns | resolved(row.columns, format_.names, row.where),
        names={**row.names, **file_names(format_.names)},
        file_columns=row.found,
    )
    hidden = {*format_.prompt_columns, *format_.names} - {"tools"}
    others = {name: value for name, value in row.columns.items() if name not in hidden}
    read, turned = format_.read, with_turns(row)
    has_texts_of_turns = format_.read_chat is not None or turned is not row
    if chat or (has_texts_of_turns and is_chat_beside(row)):
        row, read = turned, format_.read_chat or read
    for sample in read(format_.prepare(row)):
        yield sample if isinstance(sample, RowError) else replace(sample, columns=others)


def refuse_media(row: Row) -> None:
    """Refuse a row with pictures or sound, which would be trained as the words that stand for them.

    Raises:
        RowError: It has some.
    """
    for name, value in row.columns.items():
        if not _may_be_media(name) or _is_empty(value):
            continue
        if name in _MEDIA or _has_placeholder(row):
            detail = f"column {name!r}; rows without them, or with an empty column, are taken"
            raise RowError(row.where, "images, video and audio are not supported", detail)


@functools.lru_cache(maxsize=1024)
def _may_be_media(name: str) -> bool:
    return not _MEDIA_WORDS.isdisjoint(words(name))


def _is_empty(value: Any) -> bool:
    """Whether a value holds nothing at any depth, as nulls that Arrow fills in."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return value is None or (isinstance(value, str | bytes) and not value)


def _has_placeholder(row: Row) -> bool:
    """Whether some text of the row says that a picture belongs there."""
    pending: list[Any] = [*row.columns.values()]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and _PLACEHOLDER.search(value):
            return True
        if isinstance(value, list | dict):
            pending += value.values() if isinstance(value, dict) else value
    return False
