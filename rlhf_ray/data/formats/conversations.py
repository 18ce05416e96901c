"""What belongs to a chat and stands beside it in its row: a system's text, the prompt once more.

A row is a chat in every job if anything in it is: messages, a system's text, or tools.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.formats import fields
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.data.messages import (
    Messages,
    Text,
    as_chat,
    is_written_chat,
    parse_messages,
    tool_schemas,
    written_message,
)
from rlhf_ray.data.row import Row

# Columns that hold a whole conversation, or the end of one.
_CHATS = ("messages", "conversations", "completion", "chosen", "rejected", "answers")
_SYSTEM = ("system", "developer")
# What data sets call the system's text that stands beside a chat; OpenOrca the second.
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
# What a text says where a picture belongs, and names of the column that then holds it.
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MEDIA_WORDS = {*_MEDIA, "img", "imgs", "picture", "pictures", "photo", "photos", "sound", "wav"}


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


def system_turn(row: Row) -> Messages:
    """The column `system` as the first message of a chat; none where there is no such column.

    Raises:
        RowError: It holds no text, or another column of that kind another text.
    """
    found: Messages = []
    for name in _SYSTEM_COLUMNS:
        if name != _SYSTEM_COLUMNS[0] and not isinstance(row.columns.get(name), str):
            continue  # of another kind, it is a column like any other
        text = fields.optional_string(row, name)
        if text.strip():
            found = _joined_systems(row, [{"role": "system", "content": text}], found)
    return found


def is_chat_beside(row: Row) -> bool:
    """Whether what stands beside texts makes a chat of them.

    Raises:
        RowError: As in `system_turn`.
    """
    return bool(system_turn(row)) or _has_tools(row)


def with_system(row: Row, chat: Messages) -> Messages:
    """A chat behind the text of the column `system`, which it may begin with already.

    Raises:
        RowError: It begins with another.
    """
    return _joined_systems(row, system_turn(row), chat)


def read_prompt_column(row: Row) -> Text:
    """The column `prompt`: text, or a chat where anything in the row is one.

    Where a conversation stands beside it that holds it, it is that conversation up to there.

    Raises:
        RowError: It is neither, or the systems of prompt and row differ.
    """
    prompt = fields.text(row, "prompt")
    whole = _conversation(row)
    if isinstance(prompt, str) and not (whole or is_chat_beside(row)):
        return prompt
    chat = as_chat(prompt, "user")
    if num_held := _num_held(chat, whole):
        begin = len(whole) - len(_without_system(whole))
        lead = _joined_systems(row, chat[: len(chat) - len(_without_system(chat))], whole[:begin])
        chat = [*lead, *whole[begin : begin + num_held]]
    return with_system(row, chat)


def split(row: Row, prompt: Messages, conversation: Messages) -> tuple[Messages, Messages]:
    """A whole conversation, parted behind the prompt that the row names as well.

    Raises:
        RowError: The conversation does not hold that prompt.
    """
    asked, said = _without_system(prompt), _without_system(conversation)
    begin = len(conversation) - len(said)
    lead = _joined_systems(row, prompt[: len(prompt) - len(asked)], conversation[:begin])
    if not said:
        return [*lead, *asked], []
    if num_held := _num_held(prompt, conversation):
        return [*lead, *said[:num_held]], said[num_held:]
    num_again = _num_before_answer(said)
    if _alike(asked[-num_again:], said[:num_again]):
        return [*lead, *asked], said[num_again:]
    if asked[-1]["role"] == "assistant" and said[0]["role"] != "assistant":
        return [*lead, *asked, *said[:num_again]], said[num_again:]
    detail = (
        f"column 'prompt' ends with {short(asked[-1]['content'])}, and the conversation beside it "
        f"begins with {short(said[0]['content'])}: name the right one by data.columns, or force a "
        "format that has no prompt (data.format: implicit_prompt, messages)"
    )
    raise RowError(row.where, "two prompts that differ", detail)


def _conversation(row: Row) -> Messages:
    """The first column that holds a chat, if there is one; of several answers, the first."""
    for name in _CHATS:
        value: Any = row.columns.get(name)
        if name == "answers" and isinstance(answers := unfolded(value), list):
            value = next((answer for answer in answers if not _is_answer_alone(answer)), None)
        if isinstance(value, str):
            message = written_message(value)
            if message is None and not is_written_chat(value):
                continue
            value = message or value
        if isinstance(value, dict):
            value = [value]
        is_list = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        # Elsewhere objects may be something else: SQuAD's `answers`, a grader's `completion`.
        is_chat = is_list and (name in _CHATS[:2] or bool({"role", "from"} & value[0].keys()))
        if is_chat or isinstance(value, str):
            return parse_messages(value, row.where, row.called(name))
    return []


def _is_answer_alone(answer: Any) -> bool:
    """Whether an answer is a text, or an object that has one beside its rank or score."""
    is_message = isinstance(answer, dict) and {"role", "from"} & answer.keys()
    return isinstance(answer, str) or (isinstance(answer, dict) and not is_message)


def _has_tools(row: Row) -> bool:
    try:
        return bool(tool_schemas(row.columns, row.where))
    except RowError:
        return False  # of a text it is a column like any other


def _joined_systems(row: Row, before: Messages, chat: Messages) -> Messages:
    begin = chat[: len(chat) - len(_without_system(chat))]
    if before and begin and not _alike(before, begin):
        detail = f"{short(before[0]['content'])} and {short(begin[0]['content'])}: keep one"
        raise RowError(row.where, "two system texts that differ", detail)
    return chat if begin else before + chat


def _without_system(chat: Messages) -> Messages:
    """A chat behind the messages of the system that it begins with."""
    begin = next((i for i, turn in enumerate(chat) if turn["role"] not in _SYSTEM), len(chat))
    return chat[begin:]


def _alike(one: Messages, other: Messages) -> bool:
    return [(turn["role"], turn["content"].strip()) for turn in one] == [
        (turn["role"], turn["content"].strip()) for turn in other
    ]


def _num_held(prompt: Messages, conversation: Messages) -> int:
    """Messages behind the system's up to the end of a prompt; 0 where it is not among them."""
    asked, said = _without_system(prompt), _without_system(conversation)
    if not said or said[0]["role"] == "assistant":
        return 0
    if _alike(asked, said[: len(asked)]):
        return len(asked) or _num_before_answer(said)
    ends = (index + 1 for index, turn in enumerate(said) if _alike(asked, [turn]))
    return next(ends, 0)


def _num_before_answer(chat: Messages) -> int:
    return next((i for i, turn in enumerate(chat) if turn["role"] == "assistant"), len(chat))
