"""Chats as public files write them: systems, prompts, weights, parts and JSON text."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from chat_rows import (
    ANSWER,
    CALL,
    OBJECT,
    OPENED,
    RESULT,
    SYSTEM,
    SYSTEM_OPENED,
    TOOLS,
    USER,
    WORSE,
    config,
    examples,
    pair_of,
    parts,
    prompt_of,
    refusal,
)
from loads import load_pairs, load_prompts, load_rankings, load_sft

from rlhf_ray.data.chat.borders import decode


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    made = make_tokenizer()
    made.chat_template = TOOLS.replace("ARGUMENTS", OBJECT)
    return made


@pytest.mark.parametrize(
    ("row", "opened"),
    [
        ({"system": "be brief", "messages": [USER, ANSWER]}, SYSTEM_OPENED),
        ({"system": "be brief", "messages": [SYSTEM, USER, ANSWER]}, SYSTEM_OPENED),
        ({"system": " ", "messages": [USER, ANSWER]}, OPENED),
        ({"system_prompt": "be brief", "messages": [USER, ANSWER]}, SYSTEM_OPENED),
        ({"system_prompt": "be brief", "messages": [SYSTEM, USER, ANSWER]}, SYSTEM_OPENED),
        ({"system_prompt": "be brief", "prompt": "q", "completion": "a"}, SYSTEM_OPENED),
        ({"system_prompt": None, "messages": [USER, ANSWER]}, OPENED),
        ({"system": "be brief", "prompt": "q", "completion": "a"}, SYSTEM_OPENED),
        ({"system": "be brief", "prompt": [USER], "completion": [ANSWER]}, SYSTEM_OPENED),
        ({"system": "be brief", "prompt": "q", "chosen": "a", "rejected": "b"}, SYSTEM_OPENED),
        (
            {"system": "be brief", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
            SYSTEM_OPENED,
        ),
        # A prompt beside answers that are whole chats.
        ({"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, OPENED),
        (
            {"prompt": [SYSTEM, USER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
            SYSTEM_OPENED,
        ),
        (
            {"prompt": [USER], "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, WORSE]},
            SYSTEM_OPENED,
        ),
        ({"prompt": [SYSTEM], "completion": [USER, ANSWER]}, SYSTEM_OPENED),
        ({"prompt": "q", "completion": [SYSTEM, USER, ANSWER]}, SYSTEM_OPENED),
        ({"prompt": "q", "completion": [ANSWER]}, OPENED),
        # A text beside a chat that holds it.
        ({"prompt": "q", "messages": [SYSTEM, USER, ANSWER]}, SYSTEM_OPENED),
        ({"prompt": "q", "answers": [[ANSWER], "b"]}, OPENED),
        (
            {"prompt": [USER, WORSE], "completion": [USER, ANSWER]},
            OPENED + "b<|im_end|>\n" + OPENED,
        ),
        (
            {"prompt": [USER, CALL], "completion": [RESULT, ANSWER]},
            OPENED + '<call>add {"x": 1}</call><|im_end|>\n<|im_start|>tool\n2<|im_end|>\n'
            "<|im_start|>assistant\n",
        ),
    ],
)  # fmt: skip
def test_a_row_has_the_same_prompt_in_every_job(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], opened: str
) -> None:
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[:2] == [opened, "a<|im_end|>"]
    if "chosen" in row or "answers" in row:
        pair = pair_of(tmp_path, tokenizer, row)
        assert decode(tokenizer, pair.prompt_ids_T.tolist()) == opened
        said = [decode(tokenizer, answer.tolist()) for answer in pair.answer_ids_K]
        assert said == ["a<|im_end|>", "b<|im_end|>"]
    if not (isinstance(row.get("prompt"), list) and "completion" in row):
        asked = prompt_of(tmp_path, tokenizer, row)
        assert decode(tokenizer, asked.token_ids_T) == opened


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"system": "be long", "messages": [SYSTEM, USER, ANSWER]},
            "two system texts that differ: 'be long' and 'be brief': keep one",
        ),
        (
            {"prompt": "p", "completion": [USER, ANSWER]},
            "two prompts that differ: column 'prompt' ends with 'p', and the conversation beside "
            "it begins with 'q': name the right one by data.columns",
        ),
        (
            {"prompt": "q", "completion": [ANSWER, USER]},
            "roles out of order: an answer ends with the user's turn",
        ),
        (
            {"prompt": [USER, ANSWER], "completion": [ANSWER]},
            "roles out of order: prompt and answer are two turns of the assistant",
        ),
        ({"messages": [USER, ANSWER], "image": "a.png"}, "images, video and audio are not supp"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]},
            "are not supported: message 0 of column 'messages' (user): 'image_url'",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "table", "text": "x"}]}, ANSWER]},
            "message 0 of column 'messages' (user) has a part of type 'table'; known: text",
        ),
        ({"messages": [{**USER, "content": 5}, ANSWER]}, "(user) must have a text, got 5"),
        (
            {"messages": [USER, {**ANSWER, "content": {"answer": "a", "n": 1}}]},
            "message 1 of column 'messages' (assistant) must have a text, got an object with answ",
        ),
        (
            {"messages": [USER, {**ANSWER, "content": [{"text": "a"}, {"image": "b"}]}]},
            "message 1 of column 'messages' (assistant) must have a text, or a list of parts "
            "(`{type: text, text: ...}`), got list of 2: {text: 'a'}",
        ),
        ({"messages": [{**USER, "content": ["q"]}, ANSWER]}, "text: ...}`), got list of 1: 'q'"),
        (
            {"messages": [{**USER, "content": {"type": "text", "text": "q"}}, ANSWER]},
            "got dict of 2: {type: 'text', text: 'q'}",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, "neither `content` nor `tool_calls`"),
        ({"messages": [{"role": "user"}]}, "(user) has no `content`"),
        ({"messages": [{**CALL, "role": "user"}]}, "is the user's and has tool calls"),
        (
            {"messages": [USER, {**CALL, "tool_calls": [{"function": {"arguments": {}}}]}]},
            "a tool call of message 1 of column 'messages' must have `name` and `arguments`",
        ),
        (
            {"messages": [USER, {**CALL, "tool_calls": [{"name": "add", "arguments": "{x"}]}]},
            "`arguments` of a tool call of message 1 of column 'messages' must be an object",
        ),
        (
            {"messages": [USER, {"from": "function_call", "value": "add(1)"}]},
            "the tool call of message 1 of column 'messages' must be an object, or its JSON text",
        ),
        ({"messages": "[{'role': 'user', 'content': 'q'}]"}, "write it by json.dumps"),
        ({"prompt": "[{'role': 'user', 'content': 'q'}]", "completion": "a"}, "by json.dumps"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "has `weight: 0.5`; wanted 0 or 1"),
        ({"messages": [USER, {**ANSWER, "train_detail": [{}]}]}, "parts of a turn cannot be"),
        ({"messages": [{**USER, "train": True}, ANSWER]}, "only the assistant's turns are trained"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path, tokenizer, row)


def test_prompts_and_pairs_that_differ_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    pair = {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}
    words = refusal(tmp_path, tokenizer, {"prompt": "other", **pair}, load_pairs)
    assert words.startswith("two prompts that differ: column 'prompt' ends with 'other'")
    words = refusal(tmp_path, tokenizer, {**pair, "chosen": [USER, ANSWER, USER]}, load_pairs)
    assert words.startswith("roles out of order: an answer ends with the user's turn")
    other = {**pair, "prompt": "q", "chosen": [SYSTEM, USER, ANSWER]}
    assert "begin differently" in refusal(tmp_path, tokenizer, other, load_pairs)
    words = refusal(tmp_path, tokenizer, {"prompt": [USER, CALL]}, load_prompts)
    assert words.startswith("roles out of order: a prompt ends with the assistant's tool calls")


def test_a_text_that_speaks_of_pictures_is_a_text(tmp_path: Path, tokenizer: Any) -> None:
    asked = {**USER, "content": "what is <image>?"}
    for images in (None, []):
        [example] = examples(tmp_path, tokenizer, {"messages": [asked, ANSWER], "images": images})
        assert "user\nwhat is <image>?<|im_end|>" in parts(tokenizer, example)[0]


def test_chats_may_be_written_as_json_and_in_parts(tmp_path: Path, tokenizer: Any) -> None:
    asked = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    shown = [
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": [*asked, {**ANSWER, "content": [{"type": "text", "value": "a"}]}]},
        {
            "conversations": json.dumps(
                [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
            )
        },
        {"prompt": json.dumps([USER]), "completion": "a"},
        {"messages": [{"from": None, "value": None, **turn} for turn in (USER, ANSWER)]},
        {"messages": [{"role": None, "content": None, "from": "human", "value": "q"}, ANSWER]},
        {"prompt": asked, "completion": json.dumps([ANSWER])},
    ]
    for row in shown:
        [example] = examples(tmp_path, tokenizer, row)
        assert parts(tokenizer, example)[:2] == [OPENED, "a<|im_end|>"]
    # A text about such a list is a text.
    text = f"{json.dumps([USER])} What is this?"
    assert prompt_of(tmp_path, tokenizer, {"prompt": text}).text == text


@pytest.mark.parametrize("template", ["RENDERED", "MARKED"])
@pytest.mark.parametrize(
    "weight",
    [{"weight": 0}, {"loss_weight": 0.0}, {"train": False}, {"loss": False}, {"loss_mask": 0}],
)
def test_a_turn_of_weight_0_is_not_trained(
    tmp_path: Path, tokenizer: Any, template: str, weight: dict[str, Any]
) -> None:
    tokenizer.chat_template = families.CHATML
    if template == "MARKED":
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n"
            "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
            "{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    chat = [{**USER, **weight}, {**WORSE, **weight}, USER, {**ANSWER, next(iter(weight)): 1}]
    [example] = examples(tmp_path, tokenizer, {"messages": chat})
    assert parts(tokenizer, example) == [
        OPENED + "b<|im_end|>\n" + OPENED,
        "a<|im_end|>",
        "\n",
    ]


def test_rows_that_teach_nothing_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"messages": [USER, ANSWER]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"messages": [USER, {**ANSWER, "content": " "}, USER, ANSWER]},
        {"messages": [USER, {**ANSWER, "content": "", "weight": 0}, USER, ANSWER]},
    ]
    loaded = load_sft(config(tmp_path, *rows), tokenizer, max_length=999)
    assert [row.example_id for row in loaded.rows] == ["train:0", "train:3"]
    left_out = loaded.report.left_out
    assert {reason: left.count for reason, left in left_out.items()} == {
        "no turn of the assistant is to be trained": 1,
        "empty answer": 1,
    }
    silent = [SYSTEM, {**USER, "content": ""}]
    asked = [{"prompt": prompt} for prompt in ("q", "", " \n", silent)]
    prompts = load_prompts(config(tmp_path, *asked), tokenizer, context_tokens=99)
    assert len(prompts.rows) == 1 and prompts.report.left_out["empty prompt"].count == 3
    pairs = [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("q", "")]
    rankings = load_rankings(config(tmp_path, *pairs), tokenizer, max_length=99)
    assert len(rankings.rows) == 1 and rankings.report.left_out["empty prompt"].count == 1


@pytest.mark.parametrize(
    ("chat", "answer"),
    [
        ([SYSTEM, USER, ANSWER], "a"),
        ([USER, WORSE, USER, ANSWER], "a"),
        ([USER, {**CALL, "content": ""}], '{"name": "add", "arguments": {"x": 1}}'),
        ([SYSTEM, USER], None),
    ],
)
def test_rewards_get_the_answer_with_which_a_chat_ends(
    tmp_path: Path, tokenizer: Any, chat: list[dict[str, Any]], answer: str | None
) -> None:
    prompt = prompt_of(tmp_path, tokenizer, {"messages": chat, "level": 3})
    assert prompt.columns == ({"level": 3} if answer is None else {"level": 3, "answer": answer})
    assert prompt.text == (chat if answer is None else chat[:-1])
    own = prompt_of(tmp_path, tokenizer, {"messages": chat, "answer": "own"})
    assert own.columns == {"answer": "own"}


def test_a_developers_text_is_the_systems_where_a_template_knows_none(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER]}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[0] == SYSTEM_OPENED
    tokenizer.chat_template += "{# developer #}"
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[0] == SYSTEM_OPENED.replace("system", "developer")


def test_whose_turn_it_is_the_template_decides(tmp_path: Path, tokenizer: Any) -> None:
    chat = [USER, USER, SYSTEM, ANSWER]
    [example] = examples(tmp_path, tokenizer, {"messages": chat})
    assert parts(tokenizer, example)[:2] == [
        "<|im_start|>user\nq<|im_end|>\n" * 2
        + "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>",
    ]
    tokenizer.chat_template = families.LLAMA2
    words = refusal(tmp_path, tokenizer, {"messages": chat})
    assert words.startswith("the chat template refuses this chat: no system (the roles: user, user")


def test_an_end_that_the_template_does_not_write_is_trained(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    opened = "<|im_start|>user\nq<|im_start|>assistant\n"
    first, second = examples(tmp_path, tokenizer, {"messages": [USER, WORSE, USER, ANSWER]})
    assert parts(tokenizer, first) == [opened, "b</s>"]
    assert parts(tokenizer, second) == [f"{opened}b{opened}", "a</s>"]
    pair = pair_of(tmp_path, tokenizer, {"prompt": [USER], "chosen": "a", "rejected": "b"})
    assert [decode(tokenizer, ids.tolist()) for ids in pair.answer_ids_K] == ["a</s>", "b</s>"]


def test_an_end_that_is_no_token_is_warned_of(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|role|>{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}<|role|>assistant: {% endif %}"
    )
    with caplog.at_level(logging.WARNING):
        examples(tmp_path, tokenizer, *[{"messages": [USER, ANSWER]}] * 2)
    spelt, end = (record.getMessage() for record in caplog.records)
    assert "writes <|role|>, which the vocabulary of '' lacks" in spelt
    assert r"ends a turn with '\n\n', which is no token" in end


@pytest.mark.parametrize("answers", [{"text": ["a"], "start": [7]}, [{"said": "a"}], ["a", "b"]])
def test_a_prompt_is_read_whatever_is_called_answers_beside_it(
    tmp_path: Path, tokenizer: Any, answers: Any
) -> None:
    prompt = prompt_of(tmp_path, tokenizer, {"prompt": "q", "answers": answers})
    assert (prompt.text, prompt.columns) == ("q", {"answers": answers})


def test_a_templates_day_is_the_same_on_every_day(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    day = "{% if not date is defined %}{% set date = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer.chat_template = (
        day + "{{ date }}{% for m in messages %}|{{ m['content'] }}{% endfor %}"
    )
    rows = [{"prompt": [USER]}, {"prompt": [USER], "chat_template_kwargs": {"date": "today"}}]
    texts = [decode(tokenizer, prompt_of(tmp_path, tokenizer, row).token_ids_T) for row in rows]
    assert [text.partition("|")[0] for text in texts] == ["01 Jan 2025", "today"]
