"""What stands beside a chat by other names: a system's text, tools, the prompt, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_rows import (
    ADD,
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
from loads import load_pairs, load_prompts, load_sft

from rlhf_ray.data.chat.borders import decode
from rlhf_ray.data.formats.table import refuse_media
from rlhf_ray.data.row import Row
from rlhf_ray.errors import RowError

HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
TREE = {
    "role": "prompter",
    "text": "q",
    "replies": [
        {"role": "assistant", "text": "a", "rank": 0},
        {"role": "assistant", "text": "b", "rank": 1},
    ],
}


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    made = make_tokenizer()
    made.chat_template = TOOLS.replace("ARGUMENTS", OBJECT)
    return made


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "q", "completion": "a"},
        {"input": "q", "target": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
        {"conversations": ["q", "a"]},
        {"conversation": [{"input": "q", "output": "a"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
        {"prompt": "q", "answers": ["b", "a"], "ranks": [1, 0]},
        {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "model_a"},
        {"prompt": TREE},
        HH,
    ],
)
@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_systems_text_comes_first_in_every_format_and_job(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], name: str
) -> None:
    row = {**row, name: "be brief"}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[:2] == [SYSTEM_OPENED, "a<|im_end|>"]
    assert decode(tokenizer, prompt_of(tmp_path, tokenizer, row).token_ids_T) == SYSTEM_OPENED
    if {"chosen", "answers", "winner"} & row.keys() or row.get("prompt") is TREE:
        pair = pair_of(tmp_path, tokenizer, row)
        assert decode(tokenizer, pair.prompt_ids_T.tolist()) == SYSTEM_OPENED
        said = [decode(tokenizer, answer.tolist()) for answer in pair.answer_ids_K]
        assert said == ["a<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize("value", [None, "", " ", 7, ["be brief"], {"text": "be brief"}])
def test_another_name_counts_where_it_holds_text(
    tmp_path: Path, tokenizer: Any, value: Any
) -> None:
    row = {"messages": [USER, ANSWER], "system_prompt": value}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[0] == OPENED


def test_two_systems_texts_by_two_names_must_be_one(tmp_path: Path, tokenizer: Any) -> None:
    row = {"messages": [USER, ANSWER], "system": "be brief", "system_prompt": " be brief\n"}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[0] == SYSTEM_OPENED
    words = refusal(tmp_path, tokenizer, {**row, "system_prompt": "be long"})
    assert words == "two system texts that differ: 'be long' and 'be brief': keep one"


@pytest.mark.parametrize("name", ["functions", "available_tools"])
@pytest.mark.parametrize("tools", [[ADD], json.dumps([ADD]), [json.dumps(ADD)], ADD["function"]])
def test_tools_may_have_other_names(tmp_path: Path, tokenizer: Any, name: str, tools: Any) -> None:
    row = {"messages": [USER, ANSWER], name: tools}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[0] == "T:add;" + OPENED
    assert decode(tokenizer, prompt_of(tmp_path, tokenizer, row).token_ids_T) == "T:add;" + OPENED
    for other in (["add"], "add", [1], [], None, {"n": 1}):  # none are columns like any other
        [example] = examples(tmp_path, tokenizer, {**row, name: other})
        assert parts(tokenizer, example)[0] == OPENED


def test_tools_within_a_message_must_be_shown(tmp_path: Path, tokenizer: Any) -> None:
    held = {**SYSTEM, "tools": [ADD]}
    row = {"messages": [held, USER, ANSWER]}
    for load in (load_sft, load_prompts):
        words = refusal(tmp_path, tokenizer, row, load)
        assert "the tool 'add' of message 0: write it into a column `tools`" in words
    shown = "{{ m.content or '' }}{% for t in m.tools or [] %}{{ t | tojson }}{% endfor %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content or '' }}", shown)
    [example] = examples(tmp_path, tokenizer, row)
    assert '"name": "add"' in parts(tokenizer, example)[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": [SYSTEM, USER], "messages": [USER, ANSWER]}, [SYSTEM_OPENED, "a<|im_end|>"]),
        ({"prompt": "q", "messages": [SYSTEM, USER, ANSWER]}, [SYSTEM_OPENED, "a<|im_end|>"]),
        ({"prompt": "q", "conversations": [USER, ANSWER]}, [OPENED, "a<|im_end|>"]),
        ({"prompt": [SYSTEM, USER], "messages": [ANSWER]}, [SYSTEM_OPENED, "a<|im_end|>"]),
        ({"prompt": None, "messages": [USER, ANSWER]}, [OPENED, "a<|im_end|>"]),
        # All turns of a chat are trained, whatever part of it is named as the prompt.
        ({"prompt": [USER, WORSE, USER], "messages": [USER, WORSE, USER, ANSWER]},
         [OPENED, "b<|im_end|>", "\n" + OPENED, "a<|im_end|>"]),
        ({"prompt": "q", "messages": [USER, WORSE, USER, ANSWER]},
         [OPENED, "b<|im_end|>", "\n" + OPENED, "a<|im_end|>"]),
    ],
)  # fmt: skip
def test_a_prompt_beside_messages_is_in_them_and_its_system_is_kept(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], said: list[str]
) -> None:
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[: len(said)] == said


def test_a_prompt_that_messages_do_not_hold_is_refused_with_what_to_write(
    tmp_path: Path, tokenizer: Any
) -> None:
    row = {"prompt": "other", "messages": [USER, ANSWER]}
    words = refusal(tmp_path, tokenizer, row)
    assert words.startswith("two prompts that differ: column 'prompt' ends with 'other'")
    assert words.endswith("(data.format: implicit_prompt, messages)")
    [example] = load_sft(config(tmp_path, row, format="messages"), tokenizer, max_length=99).rows
    assert parts(tokenizer, example)[0] == OPENED
    system = {"prompt": [{**SYSTEM, "content": "s"}, USER], "messages": [SYSTEM, USER, ANSWER]}
    assert refusal(tmp_path, tokenizer, system).startswith("two system texts that differ: 's' and")


def test_rows_without_a_prompt_beside_messages_may_follow(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "q", "messages": [USER, ANSWER]},
        {"prompt": None, "messages": [USER, WORSE]},
    ]
    said = [parts(tokenizer, example)[1] for example in examples(tmp_path, tokenizer, *rows)]
    assert said == ["a<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize(
    "name", ["image_path", "img", "image_url", "video_file", "Images", "audio"]
)
def test_what_a_placeholder_stands_for_is_refused_by_any_name(
    tmp_path: Path, tokenizer: Any, name: str
) -> None:
    asked = {**USER, "content": "<image>\nwhat is this?"}
    for row in ({"messages": [asked, ANSWER]}, {"prompt": "<image> what?", "completion": "a"}):
        words = refusal(tmp_path, tokenizer, {**row, name: "a.png"})
        assert words.startswith(f"images, video and audio are not supported: column {name!r}")
    pair = {"prompt": [asked], "chosen": "a", "rejected": "b", name: ["a.png"]}
    assert refusal(tmp_path, tokenizer, pair, load_pairs).startswith("images, video and audio")


def test_a_decoded_sound_is_one(tmp_path: Path, tokenizer: Any) -> None:
    import numpy as np

    for value in (np.zeros(2), {"array": np.zeros(2), "path": None}, b"RIFF"):
        row = Row(row_id="x:0", where="x:1", columns={"audio": value})
        with pytest.raises(RowError, match="images, video and audio are not supported"):
            refuse_media(row)


def test_a_link_to_a_picture_is_none_and_neither_are_nulls(tmp_path: Path, tokenizer: Any) -> None:
    beside: list[dict[str, Any]] = [
        {"image_url": "a.png"}, {"images": [None]}, {"images": ""}, {"imagery": "a.png"},
        {"image": {"bytes": None, "path": None}}, {"video": []}, {"audio": {"array": []}},
    ]  # fmt: skip
    for columns in beside:
        [example] = examples(tmp_path, tokenizer, {"messages": [USER, ANSWER], **columns})
        assert parts(tokenizer, example)[0] == OPENED


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{**USER, "content": " "}, ANSWER]}, "empty prompt"),
        ({"messages": [USER, ANSWER, {**USER, "content": ""}, ANSWER]}, "empty prompt"),
        ({"conversations": ["", "a"]}, "empty prompt"),
        ({"instruction": "", "input": " ", "output": "a"}, "empty prompt"),
        ({"messages": [USER, {**ANSWER, "content": ""}]}, "empty answer"),
        ({"conversations": ["q", "a", "r", ""]}, "empty answer"),
    ],
)
def test_what_asks_or_says_nothing_is_counted_in_chats_as_well(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], reason: str
) -> None:
    good = {name: value for name, value in row.items() if name not in ("messages", "conversations")}
    good |= {"messages": [USER, ANSWER]} if "messages" in row else {}
    good |= {"conversations": ["q", "a"]} if "conversations" in row else {}
    good |= {"instruction": "q"} if "instruction" in row else {}
    loaded = load_sft(config(tmp_path, good, row), tokenizer, max_length=999)
    assert {name: each.count for name, each in loaded.report.left_out.items()} == {reason: 1}
    # For a rollout an empty answer is none, and what is asked last counts.
    prompts = load_prompts(config(tmp_path, good, row), tokenizer, context_tokens=999)
    assert len(prompts.rows) == (2 if reason == "empty answer" else 1)
    assert all(prompt.columns.get("answer") != "" for prompt in prompts.rows)


def test_a_tools_empty_answer_is_one(tmp_path: Path, tokenizer: Any) -> None:
    chat = [USER, CALL, {**RESULT, "content": ""}, ANSWER]
    [example] = examples(tmp_path, tokenizer, {"messages": chat})
    assert parts(tokenizer, example)[-2] == "a<|im_end|>"
    row = {"prompt": chat[:3], "completion": "a"}
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[-1] == "a<|im_end|>"
    assert prompt_of(tmp_path, tokenizer, row).token_ids_T


def test_a_reference_is_given_whatever_other_columns_hold(tmp_path: Path, tokenizer: Any) -> None:
    prompt = prompt_of(tmp_path, tokenizer, {"messages": [USER, ANSWER], "final": "a"})
    assert prompt.columns == {"answer": "a", "final": "a"}


@pytest.mark.parametrize(
    ("role", "is_trained"),
    [("prompter", False), ("chatgpt", True), ("bing", True), ("AI", True), ("Bot", True)],
)
def test_speakers_by_the_names_of_public_files(
    tmp_path: Path, tokenizer: Any, role: str, is_trained: bool
) -> None:
    chat = [USER, {"role": role, "content": "x"}, USER, ANSWER]
    [example] = examples(tmp_path, tokenizer, {"messages": chat})
    assert ("x<|im_end|>" in parts(tokenizer, example)[1::2]) is is_trained


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([json.dumps({"name": "add", "arguments": {"x": 1}})], None),
        (json.dumps([json.dumps({"name": "add", "arguments": {"x": 1}})]), None),
        (["add(1)"], "the tool call of message 1 of column 'messages' must be an object"),
        ([["add"]], "a tool call of message 1 of column 'messages' must have `name`"),
        ([{"function": {"name": " ", "arguments": {}}}], "must have `name` and `arguments`"),
    ],
)
def test_tool_calls_in_a_list_of_texts(
    tmp_path: Path, tokenizer: Any, calls: Any, said: str | None
) -> None:
    row = {"messages": [USER, {**CALL, "tool_calls": calls}]}
    if said is not None:
        assert said in refusal(tmp_path, tokenizer, row)
        return
    [example] = examples(tmp_path, tokenizer, row)
    assert parts(tokenizer, example)[1] == '<call>add {"x": 1}</call><|im_end|>'


@pytest.mark.parametrize("weight", [{"training": False}, {"trainable": 0}])
def test_weights_by_other_names(tmp_path: Path, tokenizer: Any, weight: dict[str, Any]) -> None:
    chat = [USER, {**WORSE, **weight}, USER, ANSWER]
    [example] = examples(tmp_path, tokenizer, {"messages": chat})
    assert parts(tokenizer, example)[1::2] == ["a<|im_end|>"]


def test_a_templates_long_refusal_is_one_line(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no\n' * 500) }}"
    words = refusal(tmp_path, tokenizer, {"messages": [USER, ANSWER]})
    assert words.startswith("the chat template refuses this chat: no no no")
    assert "\n" not in words and len(words) < 500
