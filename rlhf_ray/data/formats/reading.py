"""The samples of a row whose format is known."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlhf_ray.data.columns import file_names, resolved
from rlhf_ray.data.formats.conversations import is_chat_beside
from rlhf_ray.data.formats.dialogues import with_turns
from rlhf_ray.data.formats.row_format import RowFormat
from rlhf_ray.data.formats.samples import Sample
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError

_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# What a text says where a picture belongs, and names of the column that then holds it.
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MEDIA_WORDS = {*_MEDIA, "img", "imgs", "picture", "pictures", "photo", "photos", "sound", "wav"}


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
    return not _MEDIA_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))


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
