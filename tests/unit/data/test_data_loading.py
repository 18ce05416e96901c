"""Mixing, processes and the cache: none of them changes what a row becomes."""

from __future__ import annotations

import collections
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data import cache, parallel
from rlhf_ray.data.errors import DataError, RowError, UnusableRow
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.data.mixing import mix
from rlhf_ray.data.preferences import load_pairs
from rlhf_ray.data.prompts import load_prompts
from rlhf_ray.data.sft import load_sft
from rlhf_ray.types import SftExample


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, num_rows: int, word: str = "text") -> str:
    return write(path, [{"text": f"{word} {n}"} for n in range(num_rows)])


def ids(rows: list[SftExample]) -> list[str]:
    return [row.example_id for row in rows]


def same(one: list[SftExample], other: list[SftExample]) -> bool:
    return ids(one) == ids(other) and all(
        np.array_equal(a.token_ids_T, b.token_ids_T) and np.array_equal(a.trained_T, b.trained_T)
        for a, b in zip(one, other, strict=True)
    )


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_mixing_sees_every_source_whole(lengths: list[int], seed: int, data: Any) -> None:
    shares = data.draw(st.lists(st.floats(0.2, 1), min_size=len(lengths), max_size=len(lengths)))
    places = mix(lengths, shares, until="until_all", seed=seed)
    assert places == mix(lengths, shares, until="until_all", seed=seed)
    taken = collections.Counter(source for source, _ in places)
    assert all(taken[source] >= length for source, length in enumerate(lengths))
    last, _ = places[-1]
    assert taken[last] == lengths[last]  # it ends as soon as it may
    for source in taken:
        turns = [turn for place, turn in places if place == source]
        assert turns == list(range(len(turns)))
    first = mix(lengths, shares, until="until_first", seed=seed)
    assert places[: len(first)] == first
    counts = collections.Counter(source for source, _ in first)
    assert sum(counts[source] == length for source, length in enumerate(lengths)) == 1


def test_probabilities_are_shares_of_the_rows() -> None:
    places = mix([10_000, 10_000], [3, 1], until="until_first", seed=1)
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

    order = ResumableOrder(len(loaded.rows), seed=0)
    order.take(7)
    resumed = ResumableOrder(len(again.rows), seed=0)
    resumed.load_state_dict(order.state_dict())
    assert order.take(20) == resumed.take(20)


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
    message = r"pairs\.jsonl:301: no column 'chosen'"
    with pytest.raises(RowError, match=message):
        load_pairs(DataConfig(path=path, workers=2), chat_tokenizer, max_length=99)
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: \d+ tokens, but max_length allows"):
        load_pairs(DataConfig(path=path, workers=2), chat_tokenizer, max_length=7)


def test_many_rows_take_processes_by_themselves(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = texts(tmp_path / "a.jsonl", 9)
    monkeypatch.setattr(parallel, "ROWS_WORTH_PROCESSES", 4)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 1, 2})
    asked: list[int] = []

    def in_processes(rows: Any, work: Any, num_workers: int) -> Any:
        asked.append(num_workers)
        return (outcome for row in rows for outcome in work(row))

    monkeypatch.setattr(parallel, "_in_processes", in_processes)
    loaded = load_sft(DataConfig(path=rows), chat_tokenizer, max_length=99)
    assert ids(loaded.rows) == [f"a:{n}" for n in range(9)]
    assert asked == [3]
    load_sft(DataConfig(path=rows, limit=4), chat_tokenizer, max_length=99)
    assert asked == [3]


def test_errors_of_rows_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnusableRow("a.jsonl:3", "tie", "1 and 1")))
    assert (type(error), str(error)) == (UnusableRow, "a.jsonl:3: tie: 1 and 1")


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    return tmp_path / "cache/rows"


def test_the_cache_knows_everything_that_decides_about_tokens(
    tmp_path: Path, make_tokenizer: Any, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "text": "b"}] * 3)
    tokenizer = make_tokenizer()

    def load(tokenizer: Any = tokenizer, max_length: int = 99, **settings: Any) -> int:
        load_sft(DataConfig(path=path, **settings), tokenizer, max_length=max_length)
        return len(list(cache_folder.glob("*")))

    assert load() == 1
    monkeypatch.setattr("rlhf_ray.data.loading._tokenize", lambda *_: pytest.fail("not kept"))
    assert load(workers=1, shuffle=False) == 1
    monkeypatch.undo()
    monkeypatch.setenv("RLHF_RAY_CACHE", str(cache_folder.parent))
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    assert load(max_length=98) == 2
    assert load(over_length="drop") == 3
    assert load(format="text") == 4
    assert load(make_tokenizer(bos=True)) == 5
    assert load(on_bad_row="skip") == 6
    tokenizer.chat_template = "{{ messages }}"
    assert load() == 7
    assert load(columns={"completion": "text"}) == 8
    write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "b"}] * 3)
    assert load() == 9
    assert load(cache=False, limit=1) == 9


def test_kept_rows_are_those_that_were_tokenized(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": side} for side in ("b", "a", "c", "")]
    config = DataConfig(path=write(tmp_path / "a.jsonl", rows))
    made = load_pairs(config, chat_tokenizer, max_length=99)
    with caplog.at_level(logging.INFO):
        kept = load_pairs(config, chat_tokenizer, max_length=99)
    assert pickle.dumps(made.rows) == pickle.dumps(kept.rows)
    assert made.report == kept.report
    record = caplog.records[-1]
    assert "4 read (tokenized before), 2 kept; left out: 1 equal answers" in record.getMessage()
    prompts = load_prompts(config, chat_tokenizer, context_tokens=99)
    assert load_prompts(config, chat_tokenizer, context_tokens=99) == prompts


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "code"])
def test_a_damaged_cache_is_ignored_and_made_anew(
    tmp_path: Path,
    chat_tokenizer: Any,
    cache_folder: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import hashlib

    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    made = load_sft(config, chat_tokenizer, max_length=99)
    [file] = cache_folder.iterdir()
    whole = file.read_bytes()
    code = pickle.dumps(print)
    file.write_bytes(
        {
            "cut": whole[:-9],
            "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "empty": b"",
            "code": hashlib.sha256(code).digest() + code,
        }[damage]
    )
    again = load_sft(config, chat_tokenizer, max_length=99)
    assert same(made.rows, again.rows)
    assert any("ignored, and made anew" in record.getMessage() for record in caplog.records)
    assert [path.read_bytes() for path in cache_folder.iterdir()] == [whole]


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.parent.write_text("a file in the folder's place")
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 5
    assert any("are not kept" in record.getMessage() for record in caplog.records)


def test_small_data_is_not_kept(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    load_sft(config, chat_tokenizer, max_length=99)
    assert not (tmp_path / "cache").exists()
