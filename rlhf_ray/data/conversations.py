"""What belongs to a chat and stands beside it in its row: a system's text, the prompt once more.

A row is a chat in every job if anything in it is: messages, a system's text, or tools.
"""

from __future__ import annotations

from typing import Any

from rlhf_ray.data import fields
from rlhf_ray.data.chat import tool_schemas
from rlhf_ray.data.errors import RowError, short
from rlhf_ray.data.files import Row
from rlhf_ray.data.messages import Messages, Text, is_written_chat, parse_messages
from rlhf_ray.data.samples import as_chat

# Columns that hold a whole conversation, or the end of one.
_CHATS = ("messages", "conversations", "completion", "chosen", "rejected", "answers")
_SYSTEM = ("system", "developer")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def refuse_media(row: Row) -> None:
    """Refuse a row with pictures or sound, which would be trained as the words that stand for them.

    Raises:
        RowError: It has some.
    """
    for name in _MEDIA:
        if row.columns.get(name):
            detail = f"column {name!r}; rows without them, or with an empty column, are taken"
            raise RowError(row.where, "images, video and audio are not supported", detail)


def system_turn(row: Row) -> Messages:
    """The column `system` as the first message of a chat; none where there is no such column."""
    system = fields.optional_string(row, "system")
    return [{"role": "system", "content": system}] if system.strip() else []


def with_system(row: Row, chat: Messages) -> Messages:
    """A chat behind the text of the column `system`, which it may begin with already.

    Raises:
        RowError: It begins with another.
    """
    return _joined_systems(row, system_turn(row), chat)


def read_prompt_column(row: Row) -> Text:
    """The column `prompt`: text, or a chat where anything in the row is one.

    Where a conversation stands beside a text, the prompt is that conversation up to the text.

    Raises:
        RowError: It is neither, or the systems of prompt and row differ.
    """
    prompt = fields.text(row, "prompt")
    if isinstance(prompt, str):
        whole = _conversation(row)
        if whole and (num_asked := _num_asked(prompt, whole)):
            return with_system(row, whole[:num_asked])
        if not whole and not system_turn(row) and not _has_tools(row):
            return prompt
    return with_system(row, as_chat(prompt, "user"))


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
    if _alike(asked, said[: len(asked)]):
        num_asked = len(asked) or _num_before_answer(said)
        return [*lead, *said[:num_asked]], said[num_asked:]
    if len(asked) == 1 and (num_asked := _num_asked(asked[0]["content"], said)):
        return [*lead, *said[:num_asked]], said[num_asked:]
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
        if name == "answers" and isinstance(value, list):
            value = next((answer for answer in value if not isinstance(answer, str)), None)
        if isinstance(value, dict):
            value = [value]
        is_chat = isinstance(value, list) and value and isinstance(value[0], dict)
        if is_chat or (isinstance(value, str) and is_written_chat(value)):
            return parse_messages(value, row.where, name)
    return []


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


def _num_asked(prompt: str, chat: Messages) -> int:
    """Messages up to the first of a user that says just this; 0 where none does."""
    return next(
        (
            index + 1
            for index, turn in enumerate(chat)
            if turn["role"] == "user" and turn["content"].strip() == prompt.strip()
        ),
        0,
    )


def _num_before_answer(chat: Messages) -> int:
    return next((i for i, turn in enumerate(chat) if turn["role"] == "assistant"), len(chat))
