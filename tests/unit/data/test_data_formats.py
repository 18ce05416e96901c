from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, get_args

import pytest
from loads import load_answers, load_labelled, load_pairs, load_prompts, load_rankings, load_sft
from published_rows import PUBLISHED

from rlhf_ray.config.data import DataConfig, DataFormat
from rlhf_ray.data.formats.table import ROW_FORMATS, recognise
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.errors import DataError

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
HUMAN = {"from": "human", "value": "q"}
TREE = {
    "role": "prompter",
    "text": "q",
    "replies": [
        {"role": "assistant", "text": "bad", "rank": 1, "replies": []},
        {"role": "assistant", "text": "good", "rank": 0},
    ],
}
ALPACA = {"instruction": "do", "input": "it", "system": "be good", "history": [["a", "b"]]}
# One row of every format, by its name, as prompt and answers in the order of their quality.
ROWS: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "q", "answer": 4},
    "text": {"text": "all of it"},
    "messages": {"messages": [USER, GOOD]},
    "prompt_completion": {"prompt": "q", "completion": " good"},
    "input_target": {"input": "q", "target": " good"},
    "alpaca": {**ALPACA, "output": "good"},
    "self_instruct": {"instruction": "do", "instances": [{"input": "it", "output": "good"}]},
    "sharegpt": {"conversations": [HUMAN, {"from": "gpt", "value": "good"}]},
    "preference": {"prompt": "q", "chosen": " good", "rejected": " bad", "margin": 2},
    "implicit_prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "hh": {
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
    "sharegpt_pairs": {
        "conversations": [HUMAN],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "alpaca_pairs": {**ALPACA, "chosen": "good", "rejected": "bad"},
    "alpaca_outputs": {"instruction": "do", "output": ["good", "bad"]},
    "ranking": {"prompt": "q", "answers": ["bad", "good"], "ranks": [1, 0]},
    "oasst_tree": {"prompt": TREE},
    "unpaired": {"prompt": "q", "completion": " good", "label": True},
}
PREFERENCES = [name for name in ROWS if ROW_FORMATS[name].kind == "preferences"]


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(path=str(path), **settings)


def test_every_format_has_its_row_and_its_name_in_the_configuration() -> None:
    rows = {*ROWS, *PUBLISHED, "common_beginning"}
    assert rows == set(ROW_FORMATS) == set(get_args(DataFormat)) - {"auto"}


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_recognised_by_its_columns(name: str) -> None:
    row = Row(row_id="x:0", where="x.jsonl:1", columns=ROWS[name])
    assert recognise(row, kinds={ROW_FORMATS[name].kind}).name == name


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"prompt", "text"}))
def test_a_prompt_stands_in_every_format(name: str, tmp_path: Path, chat_tokenizer: Any) -> None:
    row = ROWS[name]
    [prompt] = load_prompts(config(tmp_path, row), chat_tokenizer, context_tokens=999).rows
    text = prompt.text if isinstance(prompt.text, str) else prompt.text[-1]["content"]
    assert text.strip() in ("q", "do\nit", "do", "Human: q\n\nAssistant:")
    assert set(prompt.columns) <= {*row, "answer"}
    own = set(prompt.columns) - set(ROW_FORMATS[name].prompt_columns)
    assert own == set(prompt.columns)


@pytest.mark.parametrize("name", PREFERENCES)
def test_the_better_answer_comes_first_in_every_format(
    name: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, ROWS[name])
    [ranking] = load_pairs(data, chat_tokenizer, max_length=999).rows
    better, worse = (chat_tokenizer.decode(answer) for answer in ranking.answer_ids_K)
    assert better.strip().startswith("good") and worse.strip().startswith("bad")
    assert ranking.margin == (2.0 if name == "preference" else 0.0)
    [answer] = load_answers(data, chat_tokenizer, max_length=999).rows
    assert answer.prompt_ids_T.tolist() == ranking.prompt_ids_T.tolist()
    assert [ids.tolist() for ids in answer.answer_ids_K] == [ranking.answer_ids_K[0].tolist()]


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_rankings_prompt_is_what_a_rollout_starts_from(
    name: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, ROWS[name])
    [ranking] = load_rankings(data, chat_tokenizer, max_length=999).rows
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=999).rows
    assert ranking.prompt_ids_T.tolist() == list(prompt.token_ids_T)


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"prompt", "unpaired"}))
def test_what_is_trained_ends_with_the_answer(
    name: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    [example] = load_sft(config(tmp_path, ROWS[name]), chat_tokenizer, max_length=999).rows
    trained = chat_tokenizer.decode(example.token_ids_T[example.trained_T])
    end = "all of it</s>" if name == "text" else ("good</s>", "good<|im_end|>")
    assert trained.endswith(end)
    if name == "alpaca":
        assert trained == "b<|im_end|>good<|im_end|>"  # the turns before are answers too


def test_one_line_says_format_columns_and_rows(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"instruction": "a", "input": "", "output": "b", "id": 3}
    with caplog.at_level(logging.INFO):
        load_sft(config(tmp_path, row, row), chat_tokenizer, max_length=99)
    [record] = caplog.records
    assert record.getMessage().endswith("train.jsonl: alpaca (instruction, input, output), 2 rows")


def test_columns_have_the_names_that_the_configuration_gives(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    names = {"prompt": "question", "chosen": "rejected", "rejected": "chosen"}
    row = {"question": "q", "prompt": "x", "chosen": " bad", "rejected": " good"}
    [pair] = load_pairs(config(tmp_path, row, columns=names), chat_tokenizer, max_length=99).rows
    assert [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K] == [
        " good</s>",
        " bad</s>",
    ]
    assert chat_tokenizer.decode(pair.prompt_ids_T) == "<s>q"


def test_a_format_can_be_forced(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {**ROWS["prompt_completion"], "text": "other"}
    data = config(tmp_path, row, format="text")
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T) == "<s>other</s>"


def test_what_a_job_cannot_take_is_named(tmp_path: Path, chat_tokenizer: Any) -> None:
    message = (
        r"train\.jsonl:1: pairs cannot be made of alpaca rows \(instruction, output\): there are "
        r".*; pairs need prompt \+ chosen \+ rejected or .*: name them by data\.columns: "
        r"\{prompt: \.\.\., chosen: \.\.\., rejected: \.\.\.\}"
    )
    with pytest.raises(DataError, match=message):
        load_pairs(config(tmp_path, ROWS["alpaca"]), chat_tokenizer, max_length=99)


def test_a_transcript_becomes_turns_with_chat(tmp_path: Path, chat_tokenizer: Any) -> None:
    plain, chat = (
        load_pairs(config(tmp_path, ROWS["hh"], chat=chat), chat_tokenizer, max_length=99).rows[0]
        for chat in (False, True)
    )
    assert chat_tokenizer.decode(plain.prompt_ids_T) == "<s>\n\nHuman: q\n\nAssistant:"
    assert chat_tokenizer.decode(chat.prompt_ids_T) == (
        "<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_tokenizer.decode(chat.answer_ids_K[1]) == "bad<|im_end|>"


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        # UltraFeedback: a prompt beside conversations that hold it.
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "q", ["good", "bad"]),
        ({"prompt": "q", "chosen": "good", "rejected": [BAD]}, "q", ["good", "bad"]),
        ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, "q", ["good", "bad"]),
    ],
)
def test_strings_and_messages_mix(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], prompt: str, answers: list[str]
) -> None:
    [pair] = load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    shown = chat_tokenizer.decode(pair.prompt_ids_T)
    said = [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K]
    assert shown == f"<s><|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert said == [f"{answer}<|im_end|>" for answer in answers]


@pytest.mark.parametrize(
    "prompt",
    [
        "### Human: q\n### Assistant:",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "### Instruction:\nq\n\n### Response:",
        "Human: q\nAssistant:",
        "User: q\nAI: b\nUser: c\nAI:",
    ],
)
def test_the_prompt_of_texts_with_turns_ends_where_the_last_answer_begins(
    tmp_path: Path, chat_tokenizer: Any, prompt: str
) -> None:
    row = {"chosen": f"{prompt} this is so", "rejected": f"{prompt} this is not"}
    loaded = load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99)
    assert loaded.report.format == "implicit_prompt (chosen, rejected)"
    [pair] = loaded.rows
    assert chat_tokenizer.decode(pair.prompt_ids_T) == f"<s>{prompt}"
    end = "<|im_end|>" if "<|im_end|>" in prompt else "</s>"
    assert [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K] == [
        f" this is so{end}",
        f" this is not{end}",
    ]


def test_what_two_answers_begin_with_is_the_prompt_only_where_that_is_said(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    row = {"chosen": "once upon a day", "rejected": "once upon a dog"}
    with pytest.raises(DataError, match=r"pairs need prompt .* data\.format: common_beginning"):
        load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99)
    data = config(tmp_path, row, format="common_beginning")
    [pair] = load_pairs(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(pair.prompt_ids_T) == "<s>once upon a"
    said = [chat_tokenizer.decode(answer) for answer in pair.answer_ids_K]
    assert said == [" day</s>", " dog</s>"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("cut", [(True, False), (False, True), (True, True)])
def test_an_answer_that_was_cut_off_gets_no_end(
    tmp_path: Path, chat_tokenizer: Any, cut: tuple[bool, bool], chat: bool
) -> None:
    flags = {"truncated_chosen": cut[0], "truncated_rejected": cut[1]}
    data = config(tmp_path, {**ROWS["preference"], **flags}, chat=chat)
    end = "<|im_end|>" if chat else "</s>"
    texts = [
        f" {said}{'' if is_cut else end}" for said, is_cut in zip(("good", "bad"), cut, strict=True)
    ]

    def read(load: Any) -> list[list[str]]:
        rows = load(data, chat_tokenizer, max_length=99).rows
        return [[chat_tokenizer.decode(answer) for answer in row.answer_ids_K] for row in rows]

    assert read(load_pairs) == read(load_rankings) == [texts]
    assert [labelled[0] for labelled in read(load_labelled)] == texts
    assert read(load_answers) == [texts[:1]]
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == texts[0]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_completion_that_was_cut_off_gets_no_end(
    tmp_path: Path, chat_tokenizer: Any, is_cut: bool, chat: bool
) -> None:
    row = {"prompt": "q", "completion": "good", "truncated": is_cut}
    data = config(tmp_path, row, chat=chat)
    text = "good" if is_cut else "good<|im_end|>" if chat else "good</s>"
    [example] = load_sft(data, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == text
    assert chat_tokenizer.decode(example.token_ids_T).endswith(text)
    labelled = config(tmp_path, {**row, "label": False}, chat=chat)
    [answer] = load_labelled(labelled, chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(answer.answer_ids_K[0]) == text


def test_scores_order_answers(tmp_path: Path, chat_tokenizer: Any) -> None:
    scored = {"prompt": "q", "answers": ["c", "a", "b"], "scores": [1, "4", 3.5]}
    [three] = load_rankings(config(tmp_path, scored), chat_tokenizer, max_length=9).rows
    assert [chat_tokenizer.decode(answer) for answer in three.answer_ids_K] == [
        "a</s>",
        "b</s>",
        "c</s>",
    ]
    pairs = load_pairs(config(tmp_path, scored), chat_tokenizer, max_length=9).rows
    assert [row.example_id for row in pairs] == ["train:0/0", "train:0/1", "train:0/2"]


def reasons(loaded: Loaded[Any]) -> dict[str, int]:
    return {name: reason.count for name, reason in loaded.report.left_out.items()}


def test_what_teaches_nothing_is_counted_and_never_an_error(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [
        pair,
        {**pair, "rejected": "a"},
        {**pair, "rejected": " \n"},
        {**pair, "score_chosen": 1, "score_rejected": 1},
        {**pair, "score_chosen": 1, "score_rejected": 2},
        {**pair, "chosen": "a" * 99},
    ]
    data = config(tmp_path, *rows, over_length="drop")
    loaded = load_pairs(data, chat_tokenizer, max_length=9)
    assert reasons(loaded) == {
        "equal answers": 1,
        "empty answer": 1,
        "tie": 1,
        "worse scored higher": 1,
        "too long": 1,
    }
    assert loaded.report.num_read == 6 == len(loaded.rows) + loaded.report.num_left_out
    with pytest.raises(DataError, match=r"no row of 1 is left; left out: 1 equal answers"):
        load_pairs(config(tmp_path, rows[1]), chat_tokenizer, max_length=9)


def test_truncation_keeps_a_prompts_end_and_an_answers_beginning(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    row = {"prompt": "a long question?", "chosen": "yes", "rejected": "no"}
    rows = [row, {**row, "chosen": "far too long"}, {**row, "prompt": "?", "chosen": "far longer"}]
    data = config(tmp_path, *rows, {**row, "chosen": "no more of it"}, over_length="truncate")
    loaded = load_pairs(data, chat_tokenizer, max_length=9)
    assert [
        [chat_tokenizer.decode(ids) for ids in (row.prompt_ids_T, *row.answer_ids_K)]
        for row in loaded.rows
    ] == [
        ["<s>ion?", "yes</s>", "no</s>"],
        ["<s>on?", "far t", "no</s>"],
        ["<s>?", "far lon", "no</s>"],
        ["<s>on?", "no mo", "no</s>"],
    ]
    assert loaded.report.num_truncated == 4


def test_the_other_answer_of_a_label_belongs_to_another_prompt(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    rows = [
        {"prompt": "a", "chosen": "1", "rejected": "2"},
        {"prompt": "b", "chosen": "3", "rejected": "4 and more"},
        {"prompt": "a", "chosen": "5", "rejected": "6"},
    ]
    data = config(tmp_path, *rows)
    labelled = load_labelled(data, chat_tokenizer, max_length=13).rows
    own, other = (
        [chat_tokenizer.decode(row.answer_ids_K[side]).removesuffix("</s>") for row in labelled]
        for side in (0, 1)
    )
    assert own == ["1", "2", "3", "4 and more", "5", "6"]
    assert [row.desirable for row in labelled] == [True, False] * 3
    assert other == ["3", "3", "5", "5", "3", "3"]
    swapped = config(tmp_path, *reversed(rows))
    for row in load_labelled(swapped, chat_tokenizer, max_length=13).rows:
        assert len(row.prompt_ids_T) + len(row.answer_ids_K[1]) <= 13


def test_a_label_alone_is_taken_as_it_stands(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        {"prompt": "a", "completion": "1", "label": 1},
        {"prompt": "b", "completion": "2", "label": "false"},
    ]
    labelled = load_labelled(config(tmp_path, *rows), chat_tokenizer, max_length=9).rows
    assert [row.desirable for row in labelled] == [True, False]
    assert labelled[1].answer_ids_K[1].tolist() == labelled[0].answer_ids_K[0].tolist()


def test_a_tree_gives_a_ranking_for_every_ranked_set_of_siblings(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    below = {
        "role": "prompter",
        "text": "and?",
        "replies": [
            {"role": "assistant", "text": "y", "rank": 1},
            {"role": "assistant", "text": "x", "rank": 0},
            {"role": "assistant", "text": "z"},
        ],
    }
    unranked = {
        "role": "prompter",
        "text": "or?",
        "replies": [{"role": "assistant", "text": text} for text in "uv"],
    }
    first, second = TREE["replies"]
    tree = {**TREE, "replies": [{**first, "replies": [below, unranked]}, second]}
    loaded = load_rankings(config(tmp_path, {"prompt": tree}), chat_tokenizer, max_length=999)
    assert [len(row.answer_ids_K) for row in loaded.rows] == [2, 2]
    assert "bad<|im_end|>" in chat_tokenizer.decode(loaded.rows[1].prompt_ids_T)
    assert chat_tokenizer.decode(loaded.rows[1].answer_ids_K[0]) == "x<|im_end|>"
    assert reasons(loaded) == {"unranked replies": 1}
