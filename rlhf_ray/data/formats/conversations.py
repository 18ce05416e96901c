"""What belongs to a chat and stands beside it in its row: a system's text, the prompt once more.

A row is a chat in every job if anything in it is: messages, a system's text, or tools.
"""

from __future__ import annotations

from typing import Any

from rlhf_ray.data.chat_options import tool_schemas
from rlhf_ray.data.formats import fields
from rlhf_ray.data.json_values import Messages, Text, is_message, unfolded
from rlhf_ray.data.messages import as_chat, is_written_chat, parse_messages, written_message
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError, short

# Columns that hold a whole conversation, or the end of one.
_CHATS = ("messages", "conversations", "completion", "chosen", "rejected", "answers")
_SYSTEM = ("system", "developer")
# What data sets call the system's text that stands beside a chat; OpenOrca the second.
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")


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
    asked, turns = _without_system(prompt), _without_system(conversation)
    begin = len(conversation) - len(turns)
    lead = _joined_systems(row, prompt[: len(prompt) - len(asked)], conversation[:begin])
    if not turns:
        return [*lead, *asked], []
    if num_held := _num_held(prompt, conversation):
        return [*lead, *turns[:num_held]], turns[num_held:]
    num_again = _num_before_answer(turns)
    if _alike(asked[-num_again:], turns[:num_again]):
        return [*lead, *asked], turns[num_again:]
    if asked[-1]["role"] == "assistant" and turns[0]["role"] != "assistant":
        return [*lead, *asked, *turns[:num_again]], turns[num_again:]
    detail = (
        f"column 'prompt' ends with {short(asked[-1]['content'])}, and the conversation beside it "
        f"begins with {short(turns[0]['content'])}: name the right one by data.columns, or force a "
        "format that has no prompt (data.format: implicit_prompt, messages)"
    )
    raise RowError(row.where, "two prompts that differ", detail)


def alpaca_prompt(row: Row) -> Messages:
    """System text, the turns before, and the instruction with its input below it.

    Raises:
        RowError: A part has the wrong type.
    """
    parts = [fields.string(row, "instruction"), fields.optional_string(row, "input")]
    asked = "\n".join(part for part in parts if part.strip())
    chat = system_turn(row)
    history = unfolded(row.columns.get("history"))
    for turn in fields.items(row, "history") if history else []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError(row.where, "wrong type", "'history' must hold [question, answer] pairs")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            content = fields.checked_text(row, "history", text)
            chat.append({"role": role, "content": content})
    return [*chat, {"role": "user", "content": asked}]


def aligned(row: Row, prompt: Text, answer: Text) -> tuple[Text, Text]:
    """Prompt and answer both as text, or both as messages.

    An answer that is a whole conversation has the prompt in it as well. A text goes on with a turn
    of the assistant that the prompt has begun.

    Raises:
        RowError: The answer is not the assistant's, or prompt and conversation differ.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        return prompt, answer
    chat, turns = as_chat(prompt, "user"), as_chat(answer, "assistant")
    if turns[0]["role"] != "assistant":
        chat, turns = split(row, chat, turns)
    elif chat[-1]["role"] == "assistant" and not isinstance(answer, str):
        detail = "prompt and answer are two turns of the assistant; to go on with one, give a text"
        raise RowError(row.where, "roles out of order", detail)
    if not turns or turns[-1]["role"] != "assistant":
        detail = f"an answer ends with the {(turns or chat)[-1]['role']}'s turn"
        raise RowError(row.where, "roles out of order", f"{detail}, not with the assistant's")
    return chat, turns


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
        is_chat = is_list and (name in _CHATS[:2] or is_message(value[0]))
        if is_chat or isinstance(value, str):
            return parse_messages(value, row.where, row.called(name))
    return []


def _is_answer_alone(answer: Any) -> bool:
    """Whether an answer is a text, or an object that has one beside its rank or score."""
    return isinstance(answer, str) or (isinstance(answer, dict) and not is_message(answer))


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
    asked, turns = _without_system(prompt), _without_system(conversation)
    if not turns or turns[0]["role"] == "assistant":
        return 0
    if _alike(asked, turns[: len(asked)]):
        return len(asked) or _num_before_answer(turns)
    ends = (index + 1 for index, turn in enumerate(turns) if _alike(asked, [turn]))
    return next(ends, 0)


def _num_before_answer(chat: Messages) -> int:
    return next((i for i, turn in enumerate(chat) if turn["role"] == "assistant"), len(chat))
