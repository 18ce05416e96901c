"""Mixing and processes: neither changes what a row becomes."""

from __future__ import annotations

import collections
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loads import load_pairs, load_prompts, load_sft
from pydantic import ValidationError

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.loading import passes
from rlhf_ray.data.order import RowsInOrder
from rlhf_ray.data.rows.rows import mix
from rlhf_ray.errors import DataError, RowError, UnusableRow
from rlhf_ray.types import SftExample


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, num_rows: int, word: str = "text") -> str:
    return write(path, [{"text": f"{word} {n}"} for n in range(num_rows)])


def ids(rows: Sequence[SftExample]) -> list[str]:
    return [row.example_id for row in rows]


def same(one: Sequence[SftExample], other: Sequence[SftExample]) -> bool:
    return ids(one) == ids(other) and all(
        np.array_equal(a.token_ids_T, b.token_ids_T) and np.array_equal(a.trained_T, b.trained_T)
        for a, b in zip(one, other, strict=True)
    )


def mixed(lengths: list[int], shares: list[float], **settings: Any) -> list[tuple[int, int]]:
    source_of, taken = mix(lengths, shares, **settings)
    return list(zip(source_of.tolist(), taken.tolist(), strict=True))


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_mixing_sees_every_source_whole(lengths: list[int], seed: int, data: Any) -> None:
    shares = data.draw(st.lists(st.floats(0.2, 1), min_size=len(lengths), max_size=len(lengths)))
    places = mixed(lengths, shares, until="until_all", seed=seed)
    assert places == mixed(lengths, shares, until="until_all", seed=seed)
    taken = collections.Counter(source for source, _ in places)
    assert all(taken[source] >= length for source, length in enumerate(lengths))
    last, _ = places[-1]
    assert taken[last] == lengths[last]  # it ends as soon as it may
    for source in taken:
        turns = [turn for place, turn in places if place == source]
        assert turns == list(range(len(turns)))
    first = mixed(lengths, shares, until="until_first", seed=seed)
    assert places[: len(first)] == first
    counts = collections.Counter(source for source, _ in first)
    assert sum(counts[source] == length for source, length in enumerate(lengths)) == 1


@pytest.mark.parametrize("until", ["until_all", "until_first"])
def test_the_draws_are_those_of_datasets(until: Any) -> None:
    from datasets import Dataset, interleave_datasets

    lengths, shares = [700, 40, 2_500], [0.3, 0.05, 1.2]
    theirs = interleave_datasets(
        [
            Dataset.from_dict({"place": [(source, n) for n in range(length)]})
            for source, length in enumerate(lengths)
        ],
        probabilities=[share / sum(shares) for share in shares],
        seed=9,
        stopping_strategy="all_exhausted" if until == "until_all" else "first_exhausted",
    )
    ours = mixed(lengths, shares, until=until, seed=9)
    assert [[source, n % lengths[source]] for source, n in ours] == list(theirs["place"])


def test_probabilities_are_shares_of_the_rows() -> None:
    places = mixed([10_000, 10_000], [3, 1], until="until_first", seed=1)
    share = sum(source == 0 for source, _ in places) / len(places)
    assert abs(share - 0.75) < 0.02


def test_a_mixture_has_unique_ids_and_goes_through_a_resumable_order(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sources = [
        {"path": texts(tmp_path / "a/train.jsonl", 3, "first"), "probability": 1.0},
        {"path": texts(tmp_path / "b/train.jsonl", 30, "second"), "probability": 2.0},
    ]
    config = DataConfig.model_validate({"sources": sources})
    loaded = load_sft(config, chat_tokenizer, max_length=99, seed=5)
    again = load_sft(config, chat_tokenizer, max_length=99, seed=5)
    other = load_sft(config, chat_tokenizer, max_length=99, seed=6)
    assert same(loaded.rows, again.rows) and ids(loaded.rows) != ids(other.rows)
    assert len(set(ids(loaded.rows))) == len(loaded.rows)
    assert {"0/train:0", "0/train:0@2", "1/train:29"} <= set(ids(loaded.rows))
    assert (loaded.report.num_read, loaded.report.num_kept) == (33, 33)
    prompts = load_prompts(config, chat_tokenizer, context_tokens=99, seed=5).rows
    assert [prompt.prompt_id for prompt in prompts] == ids(loaded.rows)

    order = RowsInOrder(loaded.rows, seed=0)
    order.take(7)
    resumed = RowsInOrder(again.rows, seed=0)
    resumed.load_state_dict(order.state_dict())
    assert ids(order.take(20)) == ids(resumed.take(20))


@pytest.mark.parametrize("name", ["split", "limit", "skip", "format", "columns"])
def test_what_belongs_to_a_source_is_refused_beside_sources(name: str) -> None:
    value = {"split": "test", "limit": 3, "skip": 1, "format": "hh", "columns": {"a": "b"}}[name]
    with pytest.raises(ValidationError, match=f"{name} belongs to each of sources"):
        DataConfig.model_validate({"sources": [{"path": "x"}], name: value})
    DataConfig.model_validate({"sources": [{"path": "x", name: value}]})
    dumped = DataConfig.model_validate({"sources": [{"path": "x"}]}).model_dump()
    DataConfig.model_validate(dumped)


def test_processes_give_the_rows_of_one_process(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": "b" * (n % 3)} for n in range(600)]
    rows[300] = {"prompt": "q"}
    path = write(tmp_path / "pairs.jsonl", rows)
    one, two = (
        load_pairs(
            DataConfig(path=path, workers=workers, on_bad_row="skip"), chat_tokenizer, max_length=99
        )
        for workers in (1, 2)
    )
    assert one.report == two.report
    assert one.report.num_read == 600 and set(one.report.left_out) == {
        "empty answer",
        "no column 'chosen'",
    }
    assert [pickle.dumps(row) for row in one.rows] == [pickle.dumps(row) for row in two.rows]
    assert one.rows.digest == two.rows.digest
    message = r"pairs\.jsonl:301: no column 'chosen'"
    with pytest.raises(RowError, match=message):
        load_pairs(DataConfig(path=path, workers=2), chat_tokenizer, max_length=99)
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: \d+ tokens, but max_length allows"):
        load_pairs(DataConfig(path=path, workers=2), chat_tokenizer, max_length=7)


def test_many_rows_take_processes_by_themselves(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(tmp_path / "a.jsonl", 9)
    monkeypatch.setattr(passes, "ROWS_WORTH_PROCESSES", 4)
    monkeypatch.setattr(passes.os, "sched_getaffinity", lambda _: {0, 1, 2})
    asked: list[int] = []

    def in_processes(rows: Any, work: Any, num_workers: int) -> Any:
        asked.append(num_workers)
        return passes.convert(rows, work, num_workers=1)

    monkeypatch.setattr(passes, "_in_processes", in_processes)
    loaded = load_sft(DataConfig(path=rows), chat_tokenizer, max_length=99)
    assert ids(loaded.rows) == [f"a:{n}" for n in range(9)]
    assert asked == [3]
    load_sft(DataConfig(path=rows, limit=4), chat_tokenizer, max_length=99)
    assert asked == [3]


def test_errors_of_rows_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnusableRow("a.jsonl:3", "tie", "1 and 1")))
    assert (type(error), str(error)) == (UnusableRow, "a.jsonl:3: tie: 1 and 1")
