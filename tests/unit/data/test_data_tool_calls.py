"""Tools, tool calls and options of the template reach it, and nothing but calls is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from chat_rows import (
    ADD,
    ANSWER,
    CALL,
    OBJECT,
    OPENED,
    RESULT,
    STRING,
    TOOLS,
    USER,
    config,
    examples,
    pair_of,
    parts,
    prompt_of,
    refusal,
)
from loads import load_pairs, load_rankings, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import decode


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    made = make_tokenizer()
    made.chat_template = TOOLS.replace("ARGUMENTS", OBJECT)
    return made


@pytest.mark.parametrize(
    "tools", [[ADD], ADD, json.dumps([ADD]), [json.dumps(ADD)], [ADD["function"]]]
)
@pytest.mark.parametrize("options", [{"short": True}, '{"short": true}'])
def test_tools_and_options_beside_a_chat_reach_the_template_in_every_job(
    tmp_path: Path, tokenizer: Any, tools: Any, options: Any
) -> None:
    beside = {"tools": tools, "chat_template_kwargs": options}
    opened = "T:add;short=True;" + OPENED
    [example] = examples(tmp_path, tokenizer, {"messages": [USER, ANSWER], **beside})
    assert parts(tokenizer, example) == [opened, "a<|im_end|>", "\n"]
    [example] = examples(tmp_path, tokenizer, {"prompt": [USER], "completion": [ANSWER], **beside})
    assert parts(tokenizer, example) == [opened, "a<|im_end|>"]
    pair = pair_of(
        tmp_path, tokenizer, {"prompt": [USER], "chosen": "a", "rejected": "b", **beside}
    )
    assert decode(tokenizer, pair.prompt_ids_T.tolist()) == opened
    for prompt in ([USER], "q"):  # tools make a chat of a text
        asked = prompt_of(tmp_path, tokenizer, {"prompt": prompt, **beside})
        assert decode(tokenizer, asked.token_ids_T) == opened


def test_whether_to_think_may_stand_beside_a_chat(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ 'off;' if enable_thinking is sameas false else '' }}" + TOOLS
    for beside, opened in [
        ({"enable_thinking": False}, "off;"),
        ({"enable_thinking": True}, ""),
        ({"enable_thinking": None}, ""),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "off;"),
    ]:
        prompt = prompt_of(tmp_path, tokenizer, {"prompt": [USER], **beside})
        assert decode(tokenizer, prompt.token_ids_T) == opened + OPENED


def test_several_calls_are_all_written_or_refused(tmp_path: Path, tokenizer: Any) -> None:
    twice = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    [example] = examples(tmp_path, tokenizer, {"messages": [USER, twice]})
    assert parts(tokenizer, example)[1] == '<call>add {"x": 1}</call>' * 2 + "<|im_end|>"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m.tool_calls or []", "(m.tool_calls or [])[:1]"
    )
    words = refusal(tmp_path, tokenizer, {"messages": [USER, twice]})
    assert words == (
        "the chat template writes one tool call of several: message 1 has 2 of them; give each a "
        "turn of its own, with its tool's answer, or set another chat_template"
    )
    assert examples(tmp_path, tokenizer, {"messages": [USER, CALL]})


def test_no_tools_are_no_tools(tmp_path: Path, tokenizer: Any) -> None:
    for tools in (None, [], "", "[]"):
        row = {"messages": [USER, ANSWER], "tools": tools, "chat_template_kwargs": {"short": None}}
        [example] = examples(tmp_path, tokenizer, row)
        assert parts(tokenizer, example)[0] == OPENED


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"tools": ["add"]}, "a tool of column 'tools' must be a JSON schema, or its .*'add'"),
        ({"tools": "add"}, "column 'tools' must be a list of JSON schemas, or its JSON text"),
        ({"tools": [7]}, "column 'tools' must be a list of JSON schemas of functions, got 7"),
        ({"tools": 7}, "column 'tools' must be a list of JSON schemas of functions, got 7"),
        ({"tools": "7"}, "column 'tools' must be a list of JSON schemas of functions, got 7"),
        ({"chat_template_kwargs": 3}, "column 'chat_template_kwargs' must be an object, got 3"),
        ({"chat_template_kwargs": {"tokenize": True}}, r"variables of the template, not \['token"),
    ],
)
def test_wrong_tools_and_options_are_named(
    tmp_path: Path, tokenizer: Any, beside: dict[str, Any], message: str
) -> None:
    words = refusal(tmp_path, tokenizer, {"messages": [USER, ANSWER], **beside})
    assert re.search(message, words)


def test_tools_that_a_template_would_not_show_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = families.CHATML
    row = {"messages": [USER, ANSWER], "tools": [ADD]}
    assert "has no place for tools: set a chat_template" in refusal(tmp_path, tokenizer, row)
    row = {"messages": [USER, CALL, RESULT, ANSWER]}
    assert "no tool calls: message 1 calls a tool" in refusal(tmp_path, tokenizer, row)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {key: value for key, value in CALL.items() if key != "content"},
        {**CALL, "content": ""},
        {**CALL, "content": []},
        {**CALL, "tool_calls": [{"function": {"name": "add", "arguments": '{"x": 1}'}}]},
        {**CALL, "tool_calls": [{"name": "add", "arguments": {"x": 1}}]},
        {**CALL, "tool_calls": json.dumps(CALL["tool_calls"])},
        {"role": "assistant", "function_call": {"name": "add", "arguments": '{"x": 1}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
        {"role": "tool_call", "content": '[{"name": "add", "arguments": {"x": 1}}]'},
    ],
)
@pytest.mark.parametrize(
    "result",
    [RESULT, {"from": "observation", "value": "2"}, {"role": "ipython", "content": 2},
     {"role": "function", "name": "add", "content": [{"type": "text", "text": "2"}]}],
)  # fmt: skip
def test_tool_calls_are_trained_and_their_results_are_not(
    tmp_path: Path, tokenizer: Any, call: dict[str, Any], result: dict[str, Any]
) -> None:
    [example] = examples(tmp_path, tokenizer, {"messages": [USER, call, result, ANSWER]})
    assert parts(tokenizer, example) == [
        OPENED,
        '<call>add {"x": 1}</call><|im_end|>',
        "\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>",
        "\n",
    ]


@pytest.mark.parametrize("arguments", [OBJECT, STRING])
@pytest.mark.parametrize("content", ["m.content or ''", "m.content.strip()", "UNLESS"])
def test_a_template_gets_calls_in_the_form_that_it_takes(
    tmp_path: Path, tokenizer: Any, arguments: str, content: str
) -> None:
    template = TOOLS.replace("ARGUMENTS", arguments)
    if content == "UNLESS":  # calls count where the content is none alone
        template = template.replace(
            "m.tool_calls or []", "m.content is none and m.tool_calls or []"
        )
    else:
        template = template.replace("m.content or ''", content)
    tokenizer.chat_template = template
    [example] = examples(tmp_path, tokenizer, {"messages": [USER, CALL, RESULT, ANSWER]})
    assert parts(tokenizer, example)[1] == '<call>add {"x": 1}</call><|im_end|>'


def test_a_turn_that_a_template_does_not_end_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = TOOLS.replace("ARGUMENTS", OBJECT).replace(
        "<|im_end|>\n{% endfor %}{% if add",
        "{% if not m.tool_calls %}<|im_end|>{% endif %}\n{% endfor %}{% if add",
    )
    words = refusal(tmp_path, tokenizer, {"messages": [USER, CALL, RESULT, ANSWER]})
    assert words.startswith("the chat template does not end this turn: message 1 ends with")


def test_what_arrow_fills_in_is_left_out_again(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    named = [CALL["tool_calls"][0]["function"], {"name": "sub", "arguments": {"y": [2]}}]
    calls = [{**CALL, "content": "a", "tool_calls": [{"function": said}]} for said in named]
    rows = [{"messages": [USER, call, RESULT, ANSWER]} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    data = DataConfig(path=str(tmp_path / "train.parquet"))
    loaded = load_sft(data, tokenizer, max_length=999).rows
    assert [parts(tokenizer, example)[1] for example in loaded] == [
        'a<call>add {"x": 1}</call><|im_end|>',
        'a<call>sub {"y": [2]}</call><|im_end|>',
    ]
    meant = {"name": "add", "arguments": '{"x": null}'}
    row = {"messages": [USER, {**CALL, "tool_calls": [{"function": meant}]}]}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[1] == '<call>add {"x": null}</call><|im_end|>'


def test_answers_that_others_speak_in_are_scored_and_not_trained(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"prompt": "q", "chosen": [CALL, RESULT, ANSWER], "rejected": "b"}
    words = refusal(tmp_path, tokenizer, row, load_pairs)
    assert words.startswith("answers that others speak in: one has a turn of the tool's")
    [ranking] = load_rankings(config(tmp_path, row), tokenizer, max_length=999).rows
    assert decode(tokenizer, ranking.answer_ids_K[0].tolist()) == (
        '<call>add {"x": 1}</call><|im_end|>\n<|im_start|>tool\n2<|im_end|>\n'
        "<|im_start|>assistant\na<|im_end|>"
    )
    turns = {"prompt": "q", "chosen": [CALL, ANSWER], "rejected": "b"}
    assert pair_of(tmp_path, tokenizer, turns).answer_ids_K
