"""Cells of CSV: JSON text stands for lists and objects, and an empty cell for nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from loads import load_labelled, load_pairs, load_prompts, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.json_values import unfolded
from rlhf_ray.errors import DataError

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
CHAT = "<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
HUMAN = {"from": "human", "value": "q"}


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    """A file of CSV, in which whatever is no text is written as JSON."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    name: value if isinstance(value, str) else json.dumps(value)
                    for name, value in row.items()
                }
            )
    return DataConfig.model_validate({"path": str(path), **settings})


@pytest.mark.parametrize(
    ("format_", "row"),
    [
        ("preference", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
        ("preference", {"prompt": USER, "chosen": GOOD, "rejected": BAD}),
        ("preference", {"prompt": "q", "chosen": GOOD, "rejected": "bad"}),
        ("implicit_prompt", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        ("message_pairs", {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]}),
        ("sharegpt_pairs", {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "good"},
                            "rejected": {"from": "gpt", "value": "bad"}}),
        ("ranking", {"prompt": [USER], "answers": ["bad", "good"], "ranks": [2, 1]}),
        ("ranking", {"prompt": [USER], "answers": [{"answer": "bad", "rank": 2},
                                                   {"answer": "good", "rank": 1}]}),
        ("ranking", {"prompt": [USER], "answers": [[BAD], [GOOD]], "scores": [0, "1"]}),
        ("arena", {"conversation_a": [USER, BAD], "conversation_b": [USER, GOOD],
                   "winner": "model_b"}),
        ("helpsteer3", {"context": [USER], "response1": "good", "response2": "bad",
                        "overall_preference": -1}),
        ("openai_preference", {"input": {"messages": [USER], "tools": []},
                               "preferred_output": [GOOD], "non_preferred_output": [BAD]}),
        ("oasst_tree", {"prompt": {"role": "prompter", "text": "q", "replies": [
            {"role": "assistant", "text": "bad", "rank": 1},
            {"role": "assistant", "text": "good", "rank": 0}]}}),
        ("oasst_message", {"message_id": "m", "role": "prompter", "text": "q", "replies": [
            {"role": "assistant", "text": "bad", "rank": 1},
            {"role": "assistant", "text": "good", "rank": 0}]}),
        ("arena_texts", {"prompt": ["q"], "response_a": ["bad"], "response_b": ["good"],
                         "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}),
    ],
)  # fmt: skip
def test_pairs_with_chats_lists_and_objects(
    tmp_path: Path, chat_tokenizer: Any, format_: str, row: dict[str, Any]
) -> None:
    data = config(tmp_path, row)
    loaded = load_pairs(data, chat_tokenizer, max_length=99)
    assert loaded.report.format.startswith(f"{format_} (")
    [pair] = loaded.rows
    assert chat_tokenizer.decode(pair.prompt_ids_T) == CHAT
    assert [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K] == [
        "good<|im_end|>",
        "bad<|im_end|>",
    ]
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "good<|im_end|>"


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "q", "completions": [{"response": "bad", "overall_score": 1},
                                              {"response": "good", "overall_score": 2.5}]}, "q"),
        ({"question": "q", "answers": [{"text": "bad", "pm_score": 1},
                                       {"text": "good", "pm_score": 5}]}, "q"),
        ({"question": {"full_text": "q"}, "answer_0": "good", "answer_1": "bad", "score_0": 1,
          "score_1": -0.5}, "q"),
        ({"info": {"post": "p", "title": "t", "subreddit": "s"},
          "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1},
         "SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:"),
    ],
)  # fmt: skip
def test_published_texts_with_objects(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], prompt: str
) -> None:
    [pair] = load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(pair.prompt_ids_T) == f"<s>{prompt}"
    assert chat_tokenizer.decode(pair.answer_ids_K[0]) == "good</s>"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD]},
        {"messages": {"role": ["user", "assistant"], "content": ["q", "good"]}},
        {"conversations": [HUMAN, {"from": "gpt", "value": "good"}]},
        {"conversations": ["q", "good"]},
        {"data": ["q", "good"]},
        {"conversation": [{"input": "q", "output": "good"}]},
        {"conversation": [{"human": "q", "assistant": "good"}]},
        {"conversation": [USER, GOOD]},
        {"inputs": [USER], "targets": "good"},
        {"instruction": "q", "instances": [{"input": "", "output": "good"}]},
        {"prompt": [USER], "completion": GOOD},
        {"prompt": USER, "completion": "good"},
        {"input": [USER], "target": [GOOD]},
    ],
)
def test_chats_of_every_form(tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any]) -> None:
    data = config(tmp_path, row)
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T).removesuffix("\n") == CHAT + "good<|im_end|>"
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "good<|im_end|>"
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert chat_tokenizer.decode(prompt.token_ids_T) == CHAT


def test_calls_of_tools(tmp_path: Path, chat_tokenizer: Any) -> None:
    call = {"name": "add", "arguments": {"x": 1}}
    chat_tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = {"query": "q", "answers": [call], "tools": [{"name": "add", "parameters": {}}]}
    loaded = load_sft(config(tmp_path, row), chat_tokenizer, max_length=999)
    assert loaded.report.format == "xlam (query, answers, tools)"
    [example] = loaded.rows
    trained = chat_tokenizer.decode(example.token_ids_T[example.trained_T])
    assert '"name": "add", "arguments": {"x": 1}' in trained


@pytest.mark.parametrize(
    "text",
    [
        "[]", "{}", "{", "[1, 2]", '["a"]', '{"role": "admin", "content": "x"}', '{"a": 1}',
        '{"role": "user"}', '{"content": "x"}', '[{"name": "x"}]', "[x]", " [1", '{"role": 1}',
    ],
)  # fmt: skip
def test_a_text_that_happens_to_be_json_is_a_text(
    tmp_path: Path, chat_tokenizer: Any, text: str
) -> None:
    data = config(tmp_path, {"prompt": text, "completion": text})
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T) == f"<s>{text}{text}</s>"
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert prompt.text == text


def test_a_text_that_is_a_whole_chat_is_no_text(tmp_path: Path, chat_tokenizer: Any) -> None:
    data = config(tmp_path, {"text": [USER, GOOD]})
    for load, limit in ((load_sft, "max_length"), (load_prompts, "context_tokens")):
        with pytest.raises(DataError, match=r"set data\.columns: \{messages: text\}$"):
            load(data, chat_tokenizer, **{limit: 99})
    forced = data.model_copy(update={"format": "text"})
    [example] = load_sft(forced, chat_tokenizer, max_length=999).rows
    assert chat_tokenizer.decode(example.token_ids_T).startswith('<s>[{"role": "user"')


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "q", "content": "r"}]',
        '[{"role": "user", "content": "q"}, {"role": "assistant", "role": "user", "content": "a"}]',
    ],
)
def test_a_key_that_appears_twice_is_seen_in_cells_too(
    tmp_path: Path, chat_tokenizer: Any, text: str
) -> None:
    for row in ({"messages": text}, {"prompt": text, "completion": "a"}):
        with pytest.raises(DataError, match=r"rows\.csv:2: a key appears twice: in column"):
            load_sft(config(tmp_path, row), chat_tokenizer, max_length=99)


def test_empty_cells_are_nothing(tmp_path: Path, chat_tokenizer: Any) -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "", "score_chosen": "",
            "score_rejected": "", "truncated_chosen": "", "truncated_rejected": " ", "system": "",
            "tools": "", "chat_template_kwargs": "", "images": ""}  # fmt: skip
    full = {**pair, "margin": "2", "truncated_chosen": "True", "score_chosen": " 3 ",
            "score_rejected": "1"}  # fmt: skip
    empty, filled = load_pairs(config(tmp_path, pair, full), chat_tokenizer, max_length=99).rows
    assert [chat_tokenizer.decode(answer) for answer in empty.answer_ids_K] == [
        "good</s>",
        "bad</s>",
    ]
    assert [chat_tokenizer.decode(answer) for answer in filled.answer_ids_K] == ["good", "bad</s>"]
    assert (empty.margin, filled.margin) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "completion": "a", "label": ""}, "label"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": "1",
          "score_rejected": ""}, "score_rejected"),
    ],
)  # fmt: skip
def test_an_empty_cell_where_something_must_be_is_named(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, str], name: str
) -> None:
    load: Any = load_labelled if name == "label" else load_pairs
    with pytest.raises(DataError, match=rf"rows\.csv:2: no column '{name}': nothing is in it here"):
        load(config(tmp_path, row), chat_tokenizer, max_length=99)


def test_paths_lead_into_cells(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"prompt": "q", "reward_model": {"ground_truth": "4", "tests": [{"in": 1}, {"in": 2}]}}
    names = {"answer": "reward_model.ground_truth", "test": "reward_model.tests.1.in"}
    [prompt] = load_prompts(
        config(tmp_path, row, columns=names), chat_tokenizer, context_tokens=9
    ).rows
    assert (prompt.columns["answer"], prompt.columns["test"]) == ("4", 2)
    wrong = config(tmp_path, row, columns={"answer": "reward_model.groundtruth"})
    with pytest.raises(DataError, match=r"did you mean .*\{answer: reward_model\.ground_truth\}"):
        load_prompts(wrong, chat_tokenizer, context_tokens=9)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" + '"a":{' * 50_000, "[" + "9" * 5000 + "]"])
def test_a_cell_without_end_is_no_list(text: str) -> None:
    assert unfolded(text) == text
