"""Preference data as they are published: recognised by themselves, the better answer first."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from chat_rows import OBJECT, OPENED, TOOLS, parts
from loads import load_labelled, load_pairs, load_prompts, load_rankings, load_sft
from published_rows import (
    BAD,
    GOOD,
    NECTAR,
    PAIRS,
    PUBLISHED,
    SUMMARIES,
    TREE,
    ULTRAFEEDBACK,
    USER,
    helpsteer,
    message,
)

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.examples.preferences import Pairs
from rlhf_ray.data.formats.table import ROW_FORMATS, recognise
from rlhf_ray.data.loading.load import open_stream
from rlhf_ray.data.row import Row
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.errors import DataError, RowError
from rlhf_ray.types import Ranking

CHATML = "<s><|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.model_validate({"path": str(path), **settings})


def texts(tokenizer: Any, ranking: Ranking) -> tuple[str, list[str]]:
    """Prompt and answers, the best first, without their end tokens."""
    answers = [tokenizer.decode(ids_T) for ids_T in ranking.answer_ids_K]
    ended = [answer.removesuffix("<|im_end|>").removesuffix("</s>") for answer in answers]
    assert all(len(short) < len(answer) for short, answer in zip(ended, answers, strict=True))
    return tokenizer.decode(ranking.prompt_ids_T), ended


def left_out(loaded: Loaded[Any]) -> dict[str, int]:
    return {name: reason.count for name, reason in loaded.report.left_out.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_come_with_the_better_side_first_and_ties_are_counted(
    name: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    rows = PAIRS[name]
    loaded = load_pairs(config(tmp_path, *rows), chat_tokenizer, max_length=999)
    assert loaded.report.format.startswith(f"{name} (")
    for pair in loaded.rows:
        prompt, answers = texts(chat_tokenizer, pair)
        is_chat = "<|im_start|>" in prompt
        assert prompt == (CHATML.format("q") if is_chat else "<s>q")
        assert answers == ["good", "bad"]
        assert pair.margin == 0.0
    assert len(loaded.rows) == min(2, len(rows))
    assert left_out(loaded) == ({"tie": 1} if len(rows) == 3 else {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_format_is_recognised_by_its_columns(name: str) -> None:
    row = Row(row_id="x:0", where="x.jsonl:1", columns=PUBLISHED[name][0])
    assert recognise(row, kinds={ROW_FORMATS[name].kind}).name == name


def test_a_pair_by_its_tokens(tmp_path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(bos=True)
    [pair] = load_pairs(config(tmp_path, PAIRS["shp"][1]), tokenizer, max_length=9).rows
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert pair.prompt_ids_T.tolist() == [begin, *tokenizer.encode("q", add_special_tokens=False)]
    assert [answer.tolist() for answer in pair.answer_ids_K] == [
        [*tokenizer.encode(text, add_special_tokens=False), end] for text in ("good", "bad")
    ]


@pytest.mark.parametrize("name", PAIRS)
def test_other_jobs_take_published_pairs_as_well(
    name: str, tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, PAIRS[name][0])
    [example] = load_sft(data, chat_tokenizer, max_length=999).rows
    trained = chat_tokenizer.decode(example.token_ids_T[example.trained_T])
    assert trained in ("good</s>", "good<|im_end|>")
    labelled = load_labelled(data, chat_tokenizer, max_length=999).rows
    assert [row.desirable for row in labelled] == [True, False]
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=999).rows
    text = prompt.text if isinstance(prompt.text, str) else prompt.text[-1]["content"]
    assert text == "q"


def test_which_of_two_labels_counts_is_said(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    row = PAIRS["pku_saferlhf"][0]
    load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99)
    [line] = [text for text in caplog.messages if "safer_response_id" in text]
    names = {
        "a": "response_0",
        "b": "response_1",
        "better": {"column": "safer_response_id", "a": 0, "b": 1},
    }
    assert "{a: response_0, b: response_1, better: {column: safer_response_id, a: 0, b: 1}}" in line
    [pair] = load_pairs(config(tmp_path, row, columns=names), chat_tokenizer, max_length=99).rows
    assert texts(chat_tokenizer, pair) == ("<s>q", ["bad", "good"])


def test_summaries_have_the_query_of_their_paper(tmp_path: Path, chat_tokenizer: Any) -> None:
    reddit, news = load_pairs(config(tmp_path, *SUMMARIES), chat_tokenizer, max_length=999).rows
    query = "<s>SUBREDDIT: r/dogs\n\nTITLE: Rex\n\nPOST: He barks.\n\nTL;DR:"
    assert texts(chat_tokenizer, reddit) == (query, [" good", " bad"])
    assert texts(chat_tokenizer, news) == ("<s>News.\n\nTL;DR:", [" good", " bad"])


LMSYS = {
    "id": 1,
    "model_a": "x",
    "model_b": "y",
    "prompt": '["q"]',
    "response_a": '["good"]',
    "response_b": '["bad \\u00e9"]',
    "winner_model_a": 1,
    "winner_model_b": 0,
    "winner_tie": 0,
}


def test_lists_of_turns_that_are_written_as_json_are_chats(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    def flags(a: Any, b: Any, tie: Any) -> dict[str, Any]:
        return {"winner_model_a": a, "winner_model_b": b, "winner_tie": tie}

    two = {"prompt": '["q", "and?"]', "response_a": '["good", "a"]', "response_b": '["bad", "b"]'}
    silent = {"prompt": ["q", "and?"], "response_a": ["good", None], "response_b": ["bad", "b"]}
    rows = [
        LMSYS,
        {**LMSYS, **flags("0", "1", "0")},
        {**LMSYS, **flags(0, 0, 1)},
        {**LMSYS, **two},
        {**LMSYS, **silent},
    ]
    data = config(tmp_path, *rows)
    loaded = load_rankings(data, chat_tokenizer, max_length=999)
    assert loaded.report.format == "arena_texts (prompt, response_a, response_b)"
    assert [texts(chat_tokenizer, ranking) for ranking in loaded.rows] == [
        (CHATML.format("q"), ["good", "bad é"]),
        (CHATML.format("q"), ["bad é", "good"]),
        (
            CHATML.format("q"),
            [
                f"{one}<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n{other}"
                for one, other in (("good", "a"), ("bad", "b"))
            ],
        ),
    ]
    assert left_out(loaded) == {"tie": 1, "empty answer": 1}
    prompts = load_prompts(data, chat_tokenizer, context_tokens=999).rows
    shown = {chat_tokenizer.decode(prompt.token_ids_T) for prompt in prompts}
    assert (len(prompts), shown) == (5, {CHATML.format("q")})
    # The rows that are to be judged have no winner.
    asked = {name: LMSYS[name] for name in ("id", "prompt", "response_a", "response_b")}
    [prompt] = load_prompts(config(tmp_path, asked), chat_tokenizer, context_tokens=99).rows
    assert chat_tokenizer.decode(prompt.token_ids_T) == CHATML.format("q")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: too few answers"):
        load_pairs(config(tmp_path, asked), chat_tokenizer, max_length=99)
    two_won = {**LMSYS, **flags(1, 1, 0)}
    with pytest.raises(DataError, match=r"unknown label: one of winner_model_a, .* must be 1"):
        load_pairs(config(tmp_path, two_won), chat_tokenizer, max_length=99)


@pytest.mark.parametrize(
    "names",
    [
        {"a": "response_a", "b": "response_b", "score_a": "winner_model_a",
         "score_b": "winner_model_b"},
        {"a": "response_a", "b": "response_b",
         "better": {"column": "winner_model_a", "a": 1, "b": 0}},
        {"chosen": "response_a", "rejected": "response_b"},
    ],
)  # fmt: skip
def test_the_text_of_such_lists_is_not_trained_under_other_names(
    tmp_path: Path, chat_tokenizer: Any, names: dict[str, Any]
) -> None:
    message = r"'prompt', 'response_a', 'response_b' are lists of turns: call them prompt, response"
    data = config(tmp_path, LMSYS, columns=names)
    with pytest.raises(DataError, match=message) as caught:
        load_pairs(data, chat_tokenizer, max_length=99)
    format_ = str(caught.value).rpartition(" ")[2]
    forced = config(tmp_path, LMSYS, columns=names, format=format_)
    [pair] = load_pairs(forced, chat_tokenizer, max_length=99).rows
    assert texts(chat_tokenizer, pair)[0] == '<s>["q"]'


def test_an_arenas_later_turns_are_part_of_what_is_compared(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    more = [{"role": "user", "content": "and?"}]
    row = {
        "conversation_a": [USER, BAD, *more, BAD],
        "conversation_b": [USER, GOOD, *more, GOOD],
        "winner": "model_b",
    }
    data = config(tmp_path, row)
    [pair] = load_rankings(data, chat_tokenizer, max_length=999).rows
    prompt, answers = texts(chat_tokenizer, pair)
    assert prompt == CHATML.format("q")
    assert answers[0] == (
        "good<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\ngood"
    )
    with pytest.raises(RowError, match=r"others speak in: .* data\.on_bad_row: skip"):
        load_pairs(data, chat_tokenizer, max_length=999)


def test_an_answers_own_rank_or_score_orders_it(tmp_path: Path, chat_tokenizer: Any) -> None:
    [nectar] = load_rankings(config(tmp_path, NECTAR), chat_tokenizer, max_length=99).rows
    prompt = "<s>\n\nHuman: q\n\nAssistant: "
    assert texts(chat_tokenizer, nectar) == (prompt, ["good", "bad", "worst"])
    scored = config(tmp_path, ULTRAFEEDBACK, {**ULTRAFEEDBACK, "completions": []})
    loaded = load_rankings(scored, chat_tokenizer, max_length=99)
    assert texts(chat_tokenizer, loaded.rows[0]) == ("<s>q", ["good", "bad"])
    assert left_out(loaded) == {"no answers": 1}


@pytest.mark.parametrize(
    "row",
    [
        NECTAR,
        {"prompt": NECTAR["prompt"], "chosen": " good", "rejected": " bad"},
        {"prompt": NECTAR["prompt"].rstrip(), "chosen": " good", "rejected": " bad"},
    ],
)
def test_a_prompt_that_is_a_transcript_becomes_turns_with_chat(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any]
) -> None:
    data = config(tmp_path, row, chat=True)
    [ranking] = load_rankings(data, chat_tokenizer, max_length=99).rows
    prompt, answers = texts(chat_tokenizer, ranking)
    assert (prompt, answers[:2]) == (CHATML.format("q"), ["good", "bad"])
    [sampled] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert list(sampled.token_ids_T) == ranking.prompt_ids_T.tolist()


def test_neighbouring_rows_of_one_prompt_are_a_ranking(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        helpsteer("q", "bad", 1),
        helpsteer("q", "good", 4),
        helpsteer("alone", "good", 4),
        helpsteer("tied", "one", 2),
        helpsteer("tied", "other", 2),
        helpsteer("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "good", 2),
        helpsteer("a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "bad", 0),
    ]
    data = config(tmp_path, *rows)
    loaded = load_rankings(data, chat_tokenizer, max_length=999)
    turns = CHATML.format("a<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc")
    assert [texts(chat_tokenizer, ranking) for ranking in loaded.rows] == [
        ("<s>q", ["good", "bad"]),
        (turns, ["good", "bad"]),
    ]
    assert [ranking.example_id for ranking in loaded.rows] == ["rows:0", "rows:5"]
    assert left_out(loaded) == {"a single answer": 1, "tie": 1}
    assert loaded.report.left_out["a single answer"].first.startswith(f"{data.path}:3")
    prompts = load_prompts(data, chat_tokenizer, context_tokens=999).rows
    assert [chat_tokenizer.decode(prompt.token_ids_T) for prompt in prompts] == [
        "<s>q",
        "<s>alone",
        "<s>tied",
        turns,
    ]
    assert prompts[0].columns["response"] == ["bad", "good"]


def test_a_stream_refuses_rows_that_belong_together(tmp_path: Path, chat_tokenizer: Any) -> None:
    data = config(tmp_path, *PUBLISHED["helpsteer"], streaming=True)
    job = Pairs.of(data, chat_tokenizer, max_length=99)
    with pytest.raises(DataError, match=r"has helpsteer rows, .* set data\.streaming: false"):
        open_stream(data, job, seed=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": [{"response": "a", "fine-grained_score": 4}, {"response": "b"}]},
         "no scores: no object of 'completions' has score or overall_score"),
        ({"completions": [{"response": "a"}, {"response": "b", "overall_score": 2}]},
         "column 'completions.overall_score' must be a finite number, got None"),
        ({"completions": [{"response": "a", "overall_score": "N/A"}]},
         "column 'completions.overall_score' must be a finite number, got 'N/A'"),
    ],
)  # fmt: skip
def test_answers_without_scores_are_not_taken_in_their_order(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError, match=message):
        load_rankings(config(tmp_path, {"instruction": "q", **row}), chat_tokenizer, max_length=99)


def test_a_first_row_without_answers_is_recognised_as_well(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, {**ULTRAFEEDBACK, "completions": []}, ULTRAFEEDBACK)
    loaded = load_rankings(data, chat_tokenizer, max_length=99)
    assert texts(chat_tokenizer, loaded.rows[0]) == ("<s>q", ["good", "bad"])
    assert left_out(loaded) == {"no answers": 1}


def test_a_summary_of_nothing_is_counted(tmp_path: Path, chat_tokenizer: Any) -> None:
    empty = {**SUMMARIES[0], "info": {"post": None, "article": ""}}
    loaded = load_pairs(config(tmp_path, *SUMMARIES, empty), chat_tokenizer, max_length=999)
    assert left_out(loaded) == {"empty prompt": 1}


def test_trees_as_pandas_and_csv_write_them(tmp_path: Path, chat_tokenizer: Any) -> None:
    written = [{**node, "rank": None if node["rank"] is None else float(node["rank"])}
               for node in TREE]  # fmt: skip
    written[0]["rank"] = float("nan")
    as_text = [{**node, "parent_id": node["parent_id"] or "",
                "rank": "" if node["rank"] is None else str(node["rank"])}
               for node in TREE]  # fmt: skip
    gone = {**message("t", "t4", "t", "worse still", rank=2), "deleted": True}
    for rows in (written, as_text, [*TREE, gone]):
        [ranking] = load_rankings(config(tmp_path, *rows), chat_tokenizer, max_length=99).rows
        assert texts(chat_tokenizer, ranking) == (CHATML.format("q"), ["good", "bad"])
    for wrong in ({"rank": "best"}, {"rank": 0.5}, {"text": None}, {"role": "wizard"}):
        data = config(tmp_path, *TREE[:2], {**TREE[2], **wrong})
        with pytest.raises(RowError, match=r"of a tree \(message_id 't2'\) must be"):
            load_rankings(data, chat_tokenizer, max_length=99)


def test_flat_messages_become_the_trees_that_they_are(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        *TREE,
        message("t", "t3", "t2", "and?"),
        message("t", "t4", "t3", "good", rank=0),
        message("t", "t5", "t3", "bad", rank=1),
        message("u", "u", None, "r"),
    ]
    loaded = load_rankings(config(tmp_path, *rows), chat_tokenizer, max_length=999)
    assert [texts(chat_tokenizer, ranking) for ranking in loaded.rows] == [
        (CHATML.format("q"), ["good", "bad"]),
        (
            CHATML.format(
                "q<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n<|im_start|>user\nand?"
            ),
            ["good", "bad"],
        ),
    ]
    assert left_out(loaded) == {"no ranked replies": 1}
    shuffled = config(tmp_path, rows[0], rows[6], *rows[1:6])
    with pytest.raises(RowError, match=r"rows\.jsonl:3: a reply without its parent: .* sort the"):
        load_rankings(shuffled, chat_tokenizer, max_length=999)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD], "label": True},
        {"messages": [USER, GOOD], "label": 1.0},
        {"messages": [USER, GOOD], "label": "yes"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
         "label": "true"},
    ],
)  # fmt: skip
def test_a_chat_with_a_label_is_a_labelled_answer(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any]
) -> None:
    rows = [row, {**row, "label": False}]
    good, bad = load_labelled(config(tmp_path, *rows), chat_tokenizer, max_length=99).rows
    assert (good.desirable, bad.desirable) == (True, False)
    assert chat_tokenizer.decode(good.prompt_ids_T) == CHATML.format("q")
    assert chat_tokenizer.decode(good.answer_ids_K[0]) == "good<|im_end|>"
    with pytest.raises(DataError, match=r"examples cannot be made of labelled_.* label says which"):
        load_sft(config(tmp_path, *rows), chat_tokenizer, max_length=99)


def test_a_label_that_judges_nothing_is_a_column_like_any_other(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    row = {"messages": [USER, GOOD], "label": "geometry"}
    [example] = load_sft(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "good<|im_end|>"
    forced = config(tmp_path, {**row, "label": True}, format="messages")
    assert len(load_sft(forced, chat_tokenizer, max_length=99).rows) == 1


@pytest.mark.parametrize("name", ["lima", "ultrachat", "capybara"])
def test_lists_of_texts_are_turns(tmp_path: Path, chat_tokenizer: Any, name: str) -> None:
    loaded = load_sft(config(tmp_path, *PUBLISHED[name]), chat_tokenizer, max_length=999)
    assert loaded.report.format.startswith(name)
    [example] = loaded.rows
    asked = CHATML.format("q") + "good<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
    whole = f"{asked}<|im_start|>assistant\ngood<|im_end|>\n"
    assert chat_tokenizer.decode(example.token_ids_T) == whole
    trained = chat_tokenizer.decode(example.token_ids_T[example.trained_T])
    assert trained == "good<|im_end|>good<|im_end|>"


def test_of_steps_with_labels_the_prompts_are_taken_and_that_is_said(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = config(tmp_path, *PUBLISHED["stepwise"])
    with caplog.at_level(logging.WARNING):
        [prompt] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert prompt.text == "q"
    assert "process reward model" in caplog.text
    with pytest.raises(DataError, match=r"pairs cannot be made of stepwise .*process reward model"):
        load_pairs(data, chat_tokenizer, max_length=99)


@pytest.mark.parametrize(
    ("name", "asked", "trained"),
    [
        ("conversation", "q", "good<|im_end|>"),
        ("dolly", "q\nc", "good<|im_end|>"),
        ("instruction_response", "q\nc", "good<|im_end|>"),
        ("query_response", "q", "so<|im_end|>good<|im_end|>"),
        ("flan", "q", "good</s>"),
    ],
)
def test_examples_that_differ_by_their_names_alone(
    tmp_path: Path, chat_tokenizer: Any, name: str, asked: str, trained: str
) -> None:
    data = config(tmp_path, *PUBLISHED[name])
    [example] = load_sft(data, chat_tokenizer, max_length=999).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == trained
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=999).rows
    assert (prompt.text if name == "flan" else prompt.text[-1]["content"]) == asked
    ids_T = example.token_ids_T[: len(prompt.token_ids_T)]
    assert list(prompt.token_ids_T) == ids_T.tolist()


def test_an_instruction_alone_is_a_prompt_with_its_input(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    data = config(tmp_path, *PUBLISHED["instruction"])
    [prompt] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert prompt.text == [{"role": "user", "content": "q\nc"}]
    assert prompt.columns == {"kind": "open"}


def test_calls_in_a_column_are_the_assistants_turn(tmp_path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TOOLS.replace("ARGUMENTS", OBJECT)
    for answers in (PUBLISHED["xlam"][0]["answers"], [{"name": "add", "arguments": {"x": 1}}]):
        data = config(tmp_path, {**PUBLISHED["xlam"][0], "answers": answers})
        [example] = load_sft(data, tokenizer, max_length=999).rows
        assert parts(tokenizer, example)[:2] == [
            "T:add;" + OPENED,
            '<call>add {"x": 1}</call><|im_end|>',
        ]


@pytest.mark.parametrize("name", ["stack_exchange", "oasst_message"])
def test_rankings_in_other_forms(tmp_path: Path, chat_tokenizer: Any, name: str) -> None:
    [ranking] = load_rankings(
        config(tmp_path, *PUBLISHED[name]), chat_tokenizer, max_length=999
    ).rows
    prompt, answers = texts(chat_tokenizer, ranking)
    assert prompt == ("<s>q" if name == "stack_exchange" else CHATML.format("q"))
    assert answers == ["good", "bad"]


def test_lists_of_an_arena_are_its_turns(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {
        **LMSYS,
        "winner_model_a": 0,
        "winner_model_b": 1,
        "prompt": '["q", "and?"]',
        "response_a": '["bad", "bad"]',
        "response_b": '["good", "good"]',
    }
    data = config(tmp_path, row)
    [ranking] = load_rankings(data, chat_tokenizer, max_length=999).rows
    prompt, answers = texts(chat_tokenizer, ranking)
    assert prompt == CHATML.format("q")
    assert answers[0] == (
        "good<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\ngood"
    )
    [prompt_alone] = load_prompts(data, chat_tokenizer, context_tokens=99).rows
    assert prompt_alone.text == [USER]


ARENA = PAIRS["arena_texts"][0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"prompt": '["q"'}, "column 'prompt' must be a list of texts, as the others are"),
        ({"response_b": "bad"}, "column 'response_b' must be a list of texts, as the others are"),
        ({"response_a": '["good", "a"]'}, "1 turns in 'prompt', 2 and 1 in answers"),
    ],
)
def test_lists_of_an_arena_that_are_no_turns_are_not_trained_as_they_are_written(
    tmp_path: Path, chat_tokenizer: Any, broken: dict[str, str], message: str
) -> None:
    for first in (LMSYS, ARENA):
        data = config(tmp_path, {**first, "winner": "model_a"}, {**LMSYS, **broken})
        with pytest.raises(RowError, match=message):
            load_rankings(data, chat_tokenizer, max_length=99)


def test_texts_of_an_arena_may_be_lists_in_words(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        {**ARENA, "response_a": '["good"]'},
        {**ARENA, "response_a": '["good"]', "response_b": '["bad"]'},
        {**ARENA, "prompt": "[q]", "response_b": "[bad"},
        {**ARENA, "prompt": [USER]},
    ]
    loaded = load_rankings(config(tmp_path, *rows), chat_tokenizer, max_length=99).rows
    assert [texts(chat_tokenizer, ranking) for ranking in loaded] == [
        ("<s>q", ['["good"]', "bad"]),
        ("<s>q", ['["good"]', '["bad"]']),
        ("<s>[q]", ["good", "[bad"]),
        (CHATML.format("q"), ["good", "bad"]),
    ]


def test_answers_that_lost_their_scores_are_not_taken_in_their_order(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    bare = {"question": "q", "answers": [{"text": "good"}, {"text": "bad"}]}
    data = config(tmp_path, *PUBLISHED["stack_exchange"], bare)
    with pytest.raises(RowError, match="no scores: no object of 'answers' has score or"):
        load_rankings(data, chat_tokenizer, max_length=99)


@pytest.mark.parametrize("level", [1, 1.2, 1.499, 1.6, 2, "1"])
def test_a_preference_may_be_anything_from_one_answer_to_the_other(
    tmp_path: Path, chat_tokenizer: Any, level: Any
) -> None:
    row = {"instruction": "q", "output_1": "one", "output_2": "two", "preference": level}
    [pair] = load_pairs(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    _, answers = texts(chat_tokenizer, pair)
    assert answers == (["one", "two"] if float(level) < 1.5 else ["two", "one"])


@pytest.mark.parametrize(
    "exchange", [{"input": "q", "output": "good"}, {"human": "q", "assistant": "good"}]
)
def test_the_first_exchange_may_have_a_system(
    tmp_path: Path, chat_tokenizer: Any, exchange: dict[str, str]
) -> None:
    row = {"conversation": [{"system": "be brief", **exchange}, exchange]}
    [example] = load_sft(config(tmp_path, row), chat_tokenizer, max_length=999).rows
    text = chat_tokenizer.decode(example.token_ids_T)
    assert text.startswith("<s><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nq<")
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "good<|im_end|>" * 2
    later = config(tmp_path, {"conversation": [exchange, {"system": "be brief", **exchange}]})
    with pytest.raises(RowError, match="exchange 1 has a `system`, which the first alone may"):
        load_sft(later, chat_tokenizer, max_length=999)


def test_an_instruction_is_not_lost_beside_input_and_target(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    row = {"instruction": "do", "input": "it", "response": "good", "target": "other"}
    [example] = load_sft(config(tmp_path, row), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T).startswith(CHATML.format("do\nit"))
    del row["response"]
    with pytest.raises(
        DataError, match=r"instruction rows .* set data\.columns: \{output: target\}"
    ):
        load_sft(config(tmp_path, row), chat_tokenizer, max_length=99)
