"""Tokenized rows on disk: what finds them again, and what happens where they cannot be kept."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loads import load_labelled, load_pairs, load_prompts, load_sft

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.examples.sft import Examples
from rlhf_ray.data.files import sources
from rlhf_ray.data.loading import cache
from rlhf_ray.data.order import digest_of_rows
from rlhf_ray.data.rows import store
from rlhf_ray.data.rows.store import RowFile
from rlhf_ray.errors import RowError
from rlhf_ray.types import SftExample


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: Path, num_rows: int) -> str:
    return write(path, [{"text": f"text {n}"} for n in range(num_rows)])


def same(one: Sequence[SftExample], other: Sequence[SftExample]) -> bool:
    return [pickle.dumps(row) for row in one] == [pickle.dumps(row) for row in other]


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
    with monkeypatch.context() as patched:
        patched.setattr("rlhf_ray.data.loading.load._tokenize", lambda *_: pytest.fail("not kept"))
        assert load(workers=1, shuffle=False) == 1
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


def test_a_files_name_counts_as_its_content_does(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path
) -> None:
    def load() -> list[str]:
        config = DataConfig(path=str(tmp_path / "data"))
        return [row.example_id for row in load_sft(config, chat_tokenizer, max_length=99).rows]

    (tmp_path / "data").mkdir()
    file = tmp_path / "data/a.csv"
    file.write_text("text,text\tb\na,b\tc\n")
    assert load() == ["data:0"]
    (tmp_path / "data/a.csv").rename(tmp_path / "data/train.csv")
    assert load() == ["data/train:0"]
    (tmp_path / "data/train.csv").rename(tmp_path / "data/train.tsv")
    with pytest.raises(RowError, match="no known format"):
        load()


def test_a_slow_tokenizer_is_known_by_more_than_its_vocabulary(tmp_path: Path) -> None:
    from transformers import CTRLTokenizer

    known = []
    for merges in ("a b\nb c</w>", "b c</w>\na b"):
        words = {"<unk>": 0, "a@@": 1, "ab@@": 2, "bc": 3, "b@@": 4, "c": 5}
        (tmp_path / "vocab.json").write_text(json.dumps(words))
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        tokenizer: Any = CTRLTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        assert not tokenizer.is_fast
        job = Examples.of(DataConfig(), tokenizer, max_length=9)
        known.append([*cache.decided_by(SourceConfig(), DataConfig(), job)])
    assert known[0] != known[1]


def test_all_code_that_rows_pass_through_is_known() -> None:
    code = (
        "import sys, rlhf_ray.data.loading.load, rlhf_ray.data.examples.sft, "
        "rlhf_ray.data.examples.prompts, rlhf_ray.data.examples.preferences; "
        "print(*(m.__file__ for n, m in sys.modules.items() "
        "if n.startswith('rlhf_ray.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {Path(name) for name in said.stdout.split()}
    package = Path(cache.__file__).parents[2]
    known = {file for pattern in cache._SOURCES for file in package.glob(pattern)}
    assert len(imported & known) > 40
    # Of configurations, settings of others than data; files of models; errors; processes.
    assert {file.stem for file in imported - known} == {
        "__init__", "base", "models", "model_files", "errors", "parent_process",
    }  # fmt: skip


def test_rows_of_the_hub_are_asked_for_once_and_kept(
    chat_tokenizer: Any, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(*named: Any, **_: Any) -> Any:
        asked.append(named)
        return datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for start in (1, 2):
        rows = load_sft(DataConfig(path="org/name"), chat_tokenizer, max_length=99).rows
        assert [row.example_id for row in rows] == ["org/name/train:0", "org/name/train:1"]
        assert asked == [("org/name", None)] * start
    assert len([*cache_folder.iterdir()]) == 1


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_changes_while_it_is_read_is_not_kept(
    tmp_path: Path,
    chat_tokenizer: Any,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_gone: bool,
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))

    def read_later(*arguments: Any, **options: Any) -> Any:
        texts(tmp_path / "a.jsonl", 6)
        yield from sources.read_rows(*arguments, **options)
        if is_gone:
            (tmp_path / "a.jsonl").unlink()

    with monkeypatch.context() as patched:
        patched.setattr("rlhf_ray.data.loading.passes.read_rows", read_later)
        assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 6
    assert list(cache_folder.iterdir()) == []
    texts(tmp_path / "a.jsonl", 5)
    assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 5


def test_kept_rows_are_those_that_were_tokenized(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": side} for side in ("b", "a", "c", "")]
    config = DataConfig(path=write(tmp_path / "a.jsonl", rows))
    for load in (load_pairs, load_labelled):
        made = load(config, chat_tokenizer, max_length=99)
        with caplog.at_level(logging.INFO):
            kept = load(config, chat_tokenizer, max_length=99)
        assert same(made.rows, kept.rows)
        assert made.rows.digest == kept.rows.digest
        assert made.report == kept.report
        assert " read (tokenized before), " in caplog.records[-1].getMessage()
        assert "left out: 1 equal answers" in caplog.records[-1].getMessage()
    prompts = load_prompts(config, chat_tokenizer, context_tokens=99)
    assert list(load_prompts(config, chat_tokenizer, context_tokens=99).rows) == list(prompts.rows)


COLUMNS: list[dict[str, Any]] = [
    {"answer": 4, "nested": {"a": [1, {"b": None}]}, "mixed": "text"},
    {"answer": "4", "nested": [], "mixed": [1, "two", 3.5]},
    {"answer": None, "nested": {"b": {"a": True}}, "mixed": {"rlhf_ray/kind": "bytes"}},
    {"answer": 10**30, "nested": "\ud800", "extra": float("inf")},
]


@pytest.mark.parametrize("is_kept", [True, False])
def test_reward_functions_get_columns_of_any_kind_as_the_file_has_them(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, is_kept: bool
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", **columns} for columns in COLUMNS])
    config = DataConfig(path=path, cache=is_kept)
    load_prompts(config, chat_tokenizer, context_tokens=99)
    rows = load_prompts(config, chat_tokenizer, context_tokens=99).rows
    assert [row.columns for row in rows] == COLUMNS


def test_and_what_only_parquet_holds(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path
) -> None:
    columns = {
        "prompt": "q",
        "at": datetime.datetime(2024, 2, 29, 12, 30, 15, 5, tzinfo=datetime.UTC),
        "day": datetime.date(2024, 2, 29),
        "hour": datetime.time(3, 4, 5, 6),
        "took": datetime.timedelta(days=-1, microseconds=7),
        "price": decimal.Decimal("1.50"),
        "raw": b"\x00\xff",
    }
    pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "a.parquet")
    config = DataConfig(path=str(tmp_path / "a.parquet"))
    for _ in range(2):
        [row] = load_prompts(config, chat_tokenizer, context_tokens=99).rows
        assert {"prompt": row.text, **row.columns} == columns


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "code", "other columns"])
def test_a_damaged_cache_is_ignored_and_made_anew(
    tmp_path: Path,
    chat_tokenizer: Any,
    cache_folder: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    # In memory: a mapped file that is cut in place kills whoever reads on.
    made = list(load_sft(config, chat_tokenizer, max_length=99).rows)
    [folder] = cache_folder.iterdir()
    file = folder / "rows.arrow"
    whole = file.read_bytes()
    table = pa.table({"example_id": ["a"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = {
        "cut": whole[:-9],
        "flipped": whole[:-99] + bytes([whole[-99] ^ 1]) + whole[-98:],
        "empty": b"",
        "gone": b"",
        "code": pickle.dumps(print),
        "other columns": sink.getvalue().to_pybytes(),
    }[damage]
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    if damage in ("code", "other columns"):
        report = json.loads((folder / "report.json").read_text())
        report["checksum"] = hashlib.sha256(content).hexdigest()
        (folder / "report.json").write_text(json.dumps(report))
    again = load_sft(config, chat_tokenizer, max_length=99)
    assert same(made, again.rows)
    assert any("ignored, and made anew" in record.getMessage() for record in caplog.records)
    assert [path.name for path in cache_folder.iterdir()] == [folder.name]
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.parent.write_text("a file in the folder's place")
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 5
    assert any("are not kept" in record.getMessage() for record in caplog.records)


def test_nor_does_one_that_cannot_be_read(
    tmp_path: Path,
    chat_tokenizer: Any,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    load_sft(config, chat_tokenizer, max_length=99)
    [kept] = cache_folder.iterdir()
    read_text = Path.read_text

    def refuse(path: Path, *arguments: Any) -> str:
        if path.is_relative_to(cache_folder):
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments)

    with monkeypatch.context() as patched:  # root may read all
        patched.setattr(Path, "read_text", refuse)
        assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 5
    assert "tokenized rows cannot be read: [Errno 13] Permission denied" in caplog.text
    assert [*cache_folder.iterdir()] == [kept]  # it is not damaged
    monkeypatch.delenv("RLHF_RAY_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert len(load_sft(config, chat_tokenizer, max_length=99).rows) == 5
    assert "set RLHF_RAY_CACHE to keep tokenized rows" in caplog.text


def test_rows_that_no_job_took_for_months_make_room(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path
) -> None:
    def load(num_rows: int) -> set[Path]:
        config = DataConfig(path=texts(tmp_path / "a.jsonl", num_rows))
        load_sft(config, chat_tokenizer, max_length=99)
        return {*cache_folder.iterdir()}

    def age(folders: set[Path], days: float) -> None:
        for folder in folders:
            at_s = time.time() - days * 86_400
            os.utime(folder / "report.json", (at_s, at_s))

    first, second = load(1), load(2)
    age(second, 89)
    third = load(3)
    assert len(third) == 3
    age(third, 91)
    assert load(1) == third  # taken again, and nothing is written
    assert load(4) == first | (load(4) - third)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=262144", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_the_cache_alone(
    tmp_path: Path,
    chat_tokenizer: Any,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    monkeypatch.setenv("RLHF_RAY_CACHE", str(small_disk))
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5_000))
    made = load_sft(config, chat_tokenizer, max_length=99)
    assert "not kept, but held in memory: " in caplog.text
    assert list((small_disk / "rows").iterdir()) == []
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    assert same(made.rows, load_sft(config, chat_tokenizer, max_length=99).rows)
    assert len(list((tmp_path / "cache/rows").iterdir())) == 1


def test_what_is_not_kept_leaves_memory_once_it_is_large_and_no_file_behind(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 2_000), cache=False)
    in_memory = load_sft(config, chat_tokenizer, max_length=99).rows
    monkeypatch.setattr(store, "_MEMORY_BYTES", 10_000)
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(tmp_path / "spilled"))
    on_disk = load_sft(config, chat_tokenizer, max_length=99).rows
    assert list((tmp_path / "spilled").iterdir()) == []
    assert same(in_memory, on_disk)


def test_a_job_that_fails_leaves_nothing_and_what_a_killed_one_left_is_removed(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path
) -> None:
    rows: list[dict[str, Any]] = [{"text": "a"}] * 300
    path = write(tmp_path / "a.jsonl", [*rows, {"text": 5}])
    with pytest.raises(RowError, match="301"):
        load_sft(DataConfig(path=path), chat_tokenizer, max_length=99)
    assert list(cache_folder.iterdir()) == []
    script = (
        "import os, sys, pathlib, pyarrow as pa\n"
        "from rlhf_ray.data.rows.store import RowFile\n"
        "RowFile(pathlib.Path(sys.argv[1]), 'killed', pa.schema({'n': pa.int32()}))\n"
        "os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(cache_folder)], timeout=120, check=False)
    alive = RowFile(cache_folder, "alive", pa.schema({"n": pa.int32()}))
    assert [folder.name[:5] for folder in cache_folder.iterdir()] == ["alive"]
    load_sft(DataConfig(path=path, limit=300), chat_tokenizer, max_length=99)
    assert alive.folder.is_dir() and len(list(cache_folder.iterdir())) == 2
    alive.drop()


def test_of_two_jobs_at_once_the_first_to_finish_is_kept(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    keep = cache.keep

    def keep_behind_another(*arguments: Any) -> None:
        monkeypatch.setattr(cache, "keep", keep)
        load_sft(config, chat_tokenizer, max_length=99)
        keep(*arguments)

    monkeypatch.setattr(cache, "keep", keep_behind_another)
    rows = load_sft(config, chat_tokenizer, max_length=99).rows
    assert len(list(cache_folder.iterdir())) == 1
    assert same(rows, load_sft(config, chat_tokenizer, max_length=99).rows)


def test_rows_in_use_outlive_their_folder(
    tmp_path: Path, chat_tokenizer: Any, cache_folder: Path
) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    expected = list(load_sft(config, chat_tokenizer, max_length=99).rows)
    rows = load_sft(config, chat_tokenizer, max_length=99).rows
    shutil.rmtree(cache_folder)
    assert same(rows, expected)


def test_small_data_is_not_kept(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 5))
    load_sft(config, chat_tokenizer, max_length=99)
    assert not (tmp_path / "cache").exists()


def test_records_at_hand_have_the_digest_of_their_rows(tmp_path: Path, chat_tokenizer: Any) -> None:
    config = DataConfig(path=texts(tmp_path / "a.jsonl", 9))
    rows = load_sft(config, chat_tokenizer, max_length=99).rows
    assert digest_of_rows(list(rows)) == rows.digest
    assert rows[2:4].digest == digest_of_rows(list(rows)[2:4])
    assert rows[::-1].digest != rows.digest
    changed = np.array([*rows[3].token_ids_T[:-1], 0], dtype=np.int32)
    other = replace(rows[3], token_ids_T=changed)
    assert digest_of_rows([*rows[:3], other, *rows[4:]]) != rows.digest


def test_a_large_file_is_read_for_its_digest_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_KEPT_ABOVE_BYTES", 4)
    monkeypatch.setattr(cache, "_SETTLED_NS", 10**7)
    path, reads = tmp_path / "a.jsonl", []
    read_whole = hashlib.file_digest
    monkeypatch.setattr(cache.hashlib, "file_digest", lambda *a: reads.append(a) or read_whole(*a))

    def digest() -> str:
        return cache.file_digest(path, tmp_path / "kept").hex()

    def expected() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    path.write_text("first")
    assert digest() == expected()  # just written: its time may not tell it from what comes next
    time.sleep(0.05)
    assert [digest(), digest()] == [expected()] * 2 and len(reads) == 2
    before = path.stat()
    path.write_text("other")  # as long, and its old time back
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest() == expected() and len(reads) == 3
    time.sleep(0.05)
    aside = tmp_path / "b"
    aside.write_text("third")
    shutil.copystat(path, aside)
    aside.replace(path)
    assert digest() == expected()
    time.sleep(0.05)
    digest()
    for kept in (tmp_path / "kept").iterdir():
        kept.write_text("[")
    assert digest() == expected()
