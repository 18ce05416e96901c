"""Chat messages as data sets write them, read into one form: OpenAI's, with its contents as text.

Of a message are kept: `role` (`system`, `developer`, `user`, `assistant` or `tool`), `content` as
text, and where there are any `tool_calls` (each a `function` with `name` and `arguments`, these as
an object), `reasoning_content`, and `weight: 0` of a turn that is not trained. All other keys stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from rlhf_ray.data.json_values import REASONING, Messages, Text, is_message, json_value, unfolded
from rlhf_ray.errors import RowError, short

# Who answers, as most data sets say it: no conversation begins so.
ASSISTANTS = ("assistant", "gpt", "model")


def as_chat(text: Text, role: str) -> Messages:
    """A chat; a string becomes one message of `role`."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


# Who speaks, by the names that ShareGPT, OpenAssistant, Llama and OpenAI's older interface use.
_ROLES = {
    **dict.fromkeys(("system", "developer", "user", "assistant", "tool"), ""),
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "ai", "bot", "chatgpt", "bing", "bard"), "assistant"),
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "tool_results": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool_calls": "assistant",
}
_CALLING = ("function_call", "tool_call", "tool_calls")
# Whether a turn is trained: OpenAI, LLaMA-Factory, axolotl, ms-swift, others.
_WEIGHTS = (
    "weight", "loss_weight", "train", "training", "trainable", "loss", "loss_mask",
    "step_loss_mask",
)  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA = ("image", "video", "audio")
_OBJECT = re.compile(r"\s*\{")
_WRITTEN = re.compile(r"\s*\[\s*\{")
_PRINTED = re.compile(r"\s*\[\s*\{\s*'(role|from|content|value)'\s*:")
_CONSUMED = {
    "role", "from", "content", "value", "tool_calls", "function_call", "train_detail",
    *REASONING, *_WEIGHTS,
}  # fmt: skip


def parse_messages(value: Any, where: str, name: str) -> Messages:
    """A chat, from the list of messages that a column holds, or the JSON text of one.

    Raises:
        RowError: It is none; the error says which message is wrong, and how.
    """
    if isinstance(value, str):
        value = json_value(value, where, f"column {name!r}", "a list of chat messages")
    if isinstance(value, dict):
        value = _transposed(value)
    if not isinstance(value, list) or not value:
        wanted = f"column {name!r} must be a list of chat messages that is not empty"
        raise RowError(where, "wrong type", f"{wanted}, got {short(value)}")
    return [
        parse_message(message, where, f"message {index} of column {name!r}")
        for index, message in enumerate(value)
    ]


def _transposed(value: dict[str, Any]) -> Any:
    """Lists by key as the list of messages that they are: a `Sequence` of `datasets` has them so.

    A single message stays one.
    """
    lists = [held for held in value.values() if isinstance(held, list)]
    is_chat = {"role", "from"} & value.keys() and len(lists) == len(value)
    if not is_chat or len({len(held) for held in lists}) != 1:
        return value
    return [dict(zip(value, held, strict=True)) for held in zip(*lists, strict=True)]


def is_written_chat(text: str) -> bool:
    """Whether a text is how a list of messages is written, in JSON or as Python prints it."""
    if _PRINTED.match(text):
        return True
    if not _WRITTEN.match(text):
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return all(map(is_message, value))


def written_message(text: str) -> dict[str, Any] | None:
    """The message that a text is the JSON of; None where it is none."""
    value = unfolded(text) if _OBJECT.match(text) else None
    if not isinstance(value, dict) or not isinstance(role := _either(value, "role", "from"), str):
        return None
    says = {"content", "value", "tool_calls", "function_call"} & value.keys()
    return value if says and role.lower() in _ROLES else None


def parse_message(message: Any, where: str, place: str) -> dict[str, Any]:
    """One message in the form that this module describes.

    Raises:
        RowError: It is none.
    """

    def wrong(reason: str, detail: str) -> NoReturn:
        raise RowError(where, reason, f"{place} {detail}")

    wanted = "must have `role` and `content`, or `from` and `value`"
    if not isinstance(message, dict):
        wrong("wrong type", f"{wanted}, got {short(message)}")
    named = _either(message, "role", "from")
    if not isinstance(named, str):
        wrong("wrong type", f"{wanted}, got {_keys(message)}")
    named = named.lower()
    if named not in _ROLES:
        wrong("unknown role", f"has the role {short(named)}; known: {', '.join(sorted(_ROLES))}")
    role = _ROLES[named] or named
    given = _either(message, "content", "value")
    if role == "tool" and not isinstance(given, str) and not _is_parts(given):
        given = None if given is None else json.dumps(given, ensure_ascii=False)
    content, calls, reasoning = _parts(None if given == [] else given, where, f"{place} ({role})")
    calls += _listed(message.get("tool_calls"), where, place)
    calls += _listed(message.get("function_call"), where, place)
    if named in _CALLING and not calls:
        content, calls = None, _listed(content, where, place)
    parsed = {
        key: value for key, value in message.items() if key not in _CONSUMED and value is not None
    }
    if content is None and not calls:
        missing = "neither `content` nor `tool_calls`" if role == "assistant" else "no `content`"
        wrong("wrong type", f"({role}) has {missing}; {wanted}, got {_keys(message)}")
    if calls and role != "assistant":
        wrong("wrong type", f"is the {role}'s and has tool calls: only the assistant calls tools")
    parsed |= {"role": role, "content": content or ""}
    if calls:
        parsed["tool_calls"] = [_call(call, where, place) for call in calls]
    reasoning = reasoning or next((message[key] for key in REASONING if message.get(key)), "")
    if not isinstance(reasoning, str):
        wrong("wrong type", f"must have its reasoning as text, got {short(reasoning)}")
    if reasoning:
        parsed["reasoning_content"] = reasoning
    if not _is_trained(message, role, where, place):
        parsed["weight"] = 0
    _check_encodable(parsed, where, place)
    return parsed


def _either(message: Mapping[str, Any], name: str, other: str) -> Any:
    return message.get(other) if message.get(name) is None else message[name]


def _parts(content: Any, where: str, place: str) -> tuple[str | None, list[Any], str]:
    """Text, tool calls and reasoning of a content, which may consist of parts."""
    if content is None or isinstance(content, str):
        return content, [], ""
    if not _is_parts(content):
        raise RowError(where, "wrong type", f"{place} must have a text, {_held(content)}")
    texts: list[str] = []
    calls: list[Any] = []
    reasoning = ""
    for part in content:
        kind = str(part["type"])
        value = next((part[key] for key in ("text", "value", kind) if part.get(key)), "")
        if any(media in kind for media in _MEDIA):
            raise RowError(where, "images, video and audio are not supported", f"{place}: {kind!r}")
        if kind == "tool_call":
            calls += _listed(value, where, place)
        elif not isinstance(value, str) or kind not in (*_TEXT_PARTS, *REASONING):
            known = ", ".join((*_TEXT_PARTS, *REASONING, "tool_call"))
            detail = f"{place} has a part of type {kind!r}; known: {known}"
            raise RowError(where, "wrong type", detail)
        elif kind in REASONING:
            reasoning += value
        else:
            texts.append(value)
    return "".join(texts), calls, reasoning


def _held(content: Any) -> str:
    """What a content is that is neither text nor parts, in words."""
    if isinstance(content, dict) and content and "type" not in content:
        return f"got an object with {', '.join(content)}"[:80]
    inside = content[0] if isinstance(content, list) and content else content
    if not isinstance(content, dict) and inside is content:
        return f"got {short(content)}"
    shown = _keys(inside) if isinstance(inside, dict) else short(inside)
    return f"or a list of parts (`{{type: text, text: ...}}`), got {short(content)}: {shown}"


def _is_parts(content: Any) -> bool:
    is_list = isinstance(content, list) and bool(content)
    return is_list and all(isinstance(part, dict) and "type" in part for part in content)


def _listed(calls: Any, where: str, place: str) -> list[Any]:
    """Tool calls as a list, from one, several, or the JSON text of either."""
    if isinstance(calls, str):
        calls = json_value(calls, where, f"the tool call of {place}", "an object") if calls else []
    return calls if isinstance(calls, list) else [calls] if calls else []


def _call(call: Any, where: str, place: str) -> dict[str, Any]:
    """A tool call with its arguments as an object."""
    wanted = f"a tool call of {place} must have `name` and `arguments`"
    if isinstance(call, str):
        call = json_value(call, where, f"the tool call of {place}", "an object")
    function = call.get("function") or call if isinstance(call, dict) else call
    if isinstance(function, str):
        function = json_value(function, where, f"the tool call of {place}", "an object")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise RowError(where, "wrong type", f"{wanted}, got {short(call)}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = json_value(
            arguments or "{}", where, f"`arguments` of a tool call of {place}", "an object"
        )
    else:
        arguments = without_nulls(arguments)
    if not isinstance(arguments, dict | None):
        raise RowError(where, "wrong type", f"{wanted}, these an object, got {short(arguments)}")
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    called = {"name": name, "arguments": arguments or {}}
    return {**named, "type": "function", "function": called}


def without_nulls(value: Any) -> Any:
    """A value without keys that hold nothing: Arrow gives every object of a column the same keys.

    A null that is meant survives in JSON text alone.
    """
    if isinstance(value, dict):
        return {key: without_nulls(held) for key, held in value.items() if held is not None}
    return [without_nulls(held) for held in value] if isinstance(value, list) else value


def _is_trained(message: Mapping[str, Any], role: str, where: str, place: str) -> bool:
    """Whether a message says that it is trained; one that does not say so is."""
    if message.get("train_detail"):
        detail = f"{place} has `train_detail`: parts of a turn cannot be trained; use `train`"
        raise RowError(where, "wrong type", detail)
    given = {key: message[key] for key in _WEIGHTS if message.get(key) is not None}
    for key, weight in given.items():
        if not isinstance(weight, int | float) or weight not in (0, 1):
            detail = f"{place} has `{key}: {short(weight)}`; wanted 0 or 1 (false or true)"
            raise RowError(where, "wrong type", detail)
        if weight and role != "assistant":
            detail = (
                f"{place} has `{key}: {short(weight)}`, but is the {role}'s: only the assistant's "
                "turns are trained; take the key away, or set it to 0"
            )
            raise RowError(where, "wrong type", detail)
    return all(given.values())


def _check_encodable(message: Mapping[str, Any], where: str, place: str) -> None:
    texts = [message["content"], message.get("reasoning_content", "")]
    if "tool_calls" in message:
        texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    for text in texts:
        check_encodable(text, where, place)


def check_encodable(text: str, where: str, place: str) -> None:
    """Refuse half of a character of two halves, which no tokenizer can encode.

    Raises:
        RowError: There is one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"{place} has half a character, U+{ord(text[error.start]):04X}"
        raise RowError(where, "lone surrogate", half) from error


def _keys(message: Mapping[str, Any]) -> str:
    """A message as an error shows it."""
    shown = ", ".join(f"{key}: {short(value)}" for key, value in list(message.items())[:6])
    return "{" + shown + "}"
