"""Of rankings with ties, with empty and with equal answers, what they say is kept, in every job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loads import load_labelled, load_pairs, load_rankings, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.errors import DataError

USER = {"role": "user", "content": "q"}


def config(tmp_path: Path, *rows: dict[str, Any], **settings: Any) -> DataConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig.model_validate({"path": str(path), **settings})


def ranking(answers: str, **levels: Any) -> dict[str, Any]:
    """`-` is an answer that says nothing."""
    return {"prompt": "q", "answers": [each.replace("-", " ") for each in answers], **levels}


def reasons(loaded: Loaded[Any]) -> dict[str, int]:
    assert loaded.report.num_read == loaded.report.num_kept + loaded.report.num_left_out
    return {name: reason.count for name, reason in loaded.report.left_out.items()}


@pytest.mark.parametrize(
    ("row", "answers", "tiers", "pairs", "good", "left_out"),
    [
        (ranking("abc", ranks=[0, 1, 1]), "abc", (0, 1, 1), ["ab", "ac"], "a", {"tie": 1}),
        (ranking("abc", ranks=[1, 0, 1]), "bac", (0, 1, 1), ["ba", "bc"], "b", {"tie": 1}),
        (ranking("abc", scores=[2, 1, 2]), "acb", (0, 0, 1), ["ab", "cb"], "ac", {"tie": 1}),
        (ranking("abcd", ranks=[5, 1, 5, 1]), "bdac", (0, 0, 1, 1), ["ba", "bc", "da", "dc"], "bd",
         {"tie": 2}),
        (ranking("abcd", ranks=[1, 1, 1, 2]), "abcd", (0, 0, 0, 1), ["ad", "bd", "cd"], "abc",
         {"tie": 3}),
        (ranking("abc", ranks=[3, 2, 1]), "cba", (), ["cb", "ca", "ba"], "c", {}),
        (ranking("ab-", ranks=[1, 0, 2]), "ba", (), ["ba"], "b", {"empty answer": 1}),
        (ranking("-ab"), "ab", (), ["ab"], "a", {"empty answer": 1}),
        (ranking("aab", ranks=[0, 1, 2]), "ab", (), ["ab"], "a", {"equal answers": 1}),
        (ranking("aabc", ranks=[0, 0, 1, 1]), "abc", (0, 1, 1), ["ab", "ac"], "a",
         {"equal answers": 1, "tie": 1}),
        (ranking("--ab", ranks=[0, 0, 1, 2]), "ab", (), ["ab"], "a", {"empty answer": 2}),
    ],
)  # fmt: skip
def test_a_ranking_keeps_what_it_says(
    tmp_path: Path,
    chat_tokenizer: Any,
    row: dict[str, Any],
    answers: str,
    tiers: tuple[int, ...],
    pairs: list[str],
    good: str,
    left_out: dict[str, int],
) -> None:
    def said(ids_T: Any) -> str:
        return str(chat_tokenizer.decode(ids_T)).removesuffix("</s>")

    data = config(tmp_path, row)
    rankings = load_rankings(data, chat_tokenizer, max_length=99)
    [whole] = rankings.rows
    assert "".join(map(said, whole.answer_ids_K)) == answers
    assert whole.tiers_K == tiers
    assert whole.order_K == (tiers or tuple(range(len(answers))))
    assert reasons(rankings) == left_out
    parted = load_pairs(data, chat_tokenizer, max_length=99)
    assert ["".join(map(said, pair.answer_ids_K)) for pair in parted.rows] == pairs
    assert all(pair.tiers_K == () for pair in parted.rows)
    assert reasons(parted) == left_out
    labelled = load_labelled(data, chat_tokenizer, max_length=99)
    assert [said(each.answer_ids_K[0]) for each in labelled.rows] == list(answers)
    assert [each.desirable for each in labelled.rows] == [answer in good for answer in answers]
    assert reasons(labelled) == {name: n for name, n in left_out.items() if name != "tie"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ranking("ab", ranks=[1, 1]), "tie"),
        (ranking("abc", scores=[2, 2, 2.0]), "tie"),
        (ranking("a-", ranks=[0, 1]), "empty answer"),
        (ranking("a--", ranks=[0, 1, 1]), "empty answer"),
        (ranking("aaa", ranks=[0, 1, 2]), "equal answers"),
        (ranking("a-b", ranks=[0, 1, 0]), "tie"),
        (ranking("a"), "a single answer"),
        (ranking(""), "no answers"),
    ],
)
@pytest.mark.parametrize("load", [load_rankings, load_pairs, load_labelled])
def test_one_that_says_nothing_is_counted_once(
    tmp_path: Path, chat_tokenizer: Any, load: Any, row: dict[str, Any], reason: str
) -> None:
    data = config(tmp_path, ranking("ab"), row)
    counts = reasons(load(data, chat_tokenizer, max_length=99))
    assert counts.pop(reason) == 1
    # Of three answers one may be empty and the others ties.
    assert counts in ({}, {"empty answer": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ranking("abc", ranks=[3, 2, 1], scores=[3, 2, 1]),
         "'scores' (the highest is best) and 'ranks' (the lowest is best) tell different orders"),
        (ranking("abc", ranks=[0, 1, 1], scores=[3, 2, 1]), "tell different orders"),
        (ranking("abc", ranks=None), "no column 'ranks': nothing is in it here"),
        (ranking("abc", scores=None, ranks=None), "no column 'scores': nothing is in it here"),
        (ranking("abc", ranks=[0, None, 1]), "column 'ranks' must be a finite number, got None"),
        (ranking("abc", scores=[1, 2]), "3 answers need as many in 'scores', got 2"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": None}]},
         "column 'answers.rank' must be a finite number, got None"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 1, "score": 1},
                                     {"answer": "b", "rank": 2, "score": 9}]},
         "'answers.score' (the highest is best) and 'answers.rank'"),
        ({"prompt": [{"role": "system", "content": "s"}],
          "answers": [[{**USER, "content": text}, {"role": "assistant", "content": text}]
                      for text in "ab"]},
         "two prompts that differ: column 'prompt' ends with 'a', and the conversation beside it "),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_known_is_refused(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any], message: str
) -> None:
    for load in (load_rankings, load_pairs):
        with pytest.raises(DataError) as caught:
            load(config(tmp_path, row), chat_tokenizer, max_length=99)
        assert message in str(caught.value)


def test_ranks_and_scores_may_say_the_same(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        ranking("ab", ranks=[2, 1], scores=[0.5, 3]),
        ranking("ab", ranks=None, scores=[0.5, 3]),
        ranking("ab", ranks=[2, 1], scores=None),
    ]
    for row in load_rankings(config(tmp_path, *rows), chat_tokenizer, max_length=99).rows:
        assert [chat_tokenizer.decode(ids_T) for ids_T in row.answer_ids_K] == ["b</s>", "a</s>"]


def test_of_very_many_answers_not_all_pairs_are_made(tmp_path: Path, chat_tokenizer: Any) -> None:
    row = {"prompt": "q", "answers": [str(number) for number in range(100_000)]}
    for load in (load_rankings, load_pairs, load_labelled):
        with pytest.raises(
            DataError, match=r"at most 256 are compared with one another, got 100000"
        ):
            load(config(tmp_path, row), chat_tokenizer, max_length=99)


def test_answers_whose_tokens_are_the_same_are_one(tmp_path: Path, chat_tokenizer: Any) -> None:
    # They differ behind what truncation keeps.
    row = {"prompt": "q", "answers": ["long" * 9 + "x", "long" * 9 + "y", "z"]}
    data = config(tmp_path, row, over_length="truncate")
    loaded = load_rankings(data, chat_tokenizer, max_length=20)
    [whole] = loaded.rows
    assert len(whole.answer_ids_K) == 2
    assert chat_tokenizer.decode(whole.answer_ids_K[1]) == "z</s>"
    assert reasons(loaded) == {"equal answers": 1}


def test_tiers_survive_the_table_of_rows(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [ranking("abc", ranks=[0, 1, 1]), ranking("ab"), ranking("abc", scores=[1, 1, 0])]
    loaded = load_rankings(config(tmp_path, *rows), chat_tokenizer, max_length=99)
    assert [row.tiers_K for row in loaded.rows] == [(0, 1, 1), (), (0, 0, 1)]


def test_a_turn_of_weight_0_is_no_answer_of_a_pair(tmp_path: Path, chat_tokenizer: Any) -> None:
    good = [{"role": "assistant", "content": text} for text in ("a", "b")]
    unweighted = {"prompt": [USER], "chosen": good[:1], "rejected": "worse"}
    silenced = {**unweighted, "chosen": [{**good[0], "weight": 0}]}
    for load in (load_pairs, load_labelled):
        loaded = load(config(tmp_path, unweighted, silenced), chat_tokenizer, max_length=99)
        assert reasons(loaded) == {"no turn of the assistant is to be trained": 1}
    half = {**unweighted, "chosen": [{**good[0], "weight": 0}, good[1]]}
    with pytest.raises(DataError, match=r"an answer with a turn of weight 0: .* data.on_bad_row"):
        load_pairs(config(tmp_path, half), chat_tokenizer, max_length=99)
    # A reward model trains no token of it.
    loaded_rankings = load_rankings(config(tmp_path, silenced, half), chat_tokenizer, max_length=99)
    assert len(loaded_rankings.rows) == 2
    [example] = load_sft(config(tmp_path, half), chat_tokenizer, max_length=99).rows
    assert chat_tokenizer.decode(example.token_ids_T[example.trained_T]) == "b<|im_end|>"
