from __future__ import annotations

import bz2
import gzip
import json
import lzma
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.data.row import Row
from rlhf_ray.errors import DataError, RowError


def rows_of(path: str, *, separator: str = "<|endoftext|>", **source: Any) -> list[Row]:
    """All rows; the first that cannot be read is raised."""
    rows = []
    for row in read_rows(SourceConfig(path=path, **source), separator=separator):
        if isinstance(row, RowError):
            raise row
        rows.append(row)
    return rows


ROWS = [{"prompt": "one", "n": 1}, {"prompt": "zwei\u2028é", "n": 2}, {"prompt": "三", "n": 3}]


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": partial(pa.compress, codec="zstd", asbytes=True),
}


def write(path: Path, content: str | bytes) -> str:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(raw))
    return str(path)


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.jsonl", json_lines(ROWS), [1, 2, 3]),
        ("a.jsonl", "\n" + json_lines(ROWS).replace("\n", "\r\n\r\n"), [2, 4, 6]),
        ("a.jsonl", b"\xef\xbb\xbf" + json_lines(ROWS).encode(), [1, 2, 3]),
        ("a.jsonl.gz", json_lines(ROWS), [1, 2, 3]),
        ("a.json", json_lines(ROWS), [1, 2, 3]),
        ("a.json", json.dumps(ROWS), [1, 1, 1]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6, 10]),
        ("a.json.gz", json.dumps(ROWS, indent=1), [2, 6, 10]),
        ("a.jsonl.zst", json_lines(ROWS), [1, 2, 3]),
        ("a.jsonl.bz2", json_lines(ROWS), [1, 2, 3]),
        ("a.json.xz", json.dumps(ROWS, indent=1), [2, 6, 10]),
        ("a.ndjson", json_lines(ROWS), [1, 2, 3]),
        ("a.jsonl", json.dumps(ROWS, indent=1), [2, 6, 10]),
        ("a.jsonl", json.dumps(ROWS), [1, 1, 1]),
        ("A.JSON", json.dumps(ROWS, ensure_ascii=False), [1, 1, 1]),
    ],
)
def test_json_rows_and_their_lines(
    tmp_path: Path, name: str, content: str | bytes, lines: list[int]
) -> None:
    path = write(tmp_path / name, content)
    rows = rows_of(path)
    assert [row.columns for row in rows] == ROWS
    assert [row.where for row in rows] == [f"{path}:{line}" for line in lines]
    stem = name.partition(".")[0]
    assert [row.row_id for row in rows] == [f"{stem}:0", f"{stem}:1", f"{stem}:2"]


def test_csv_rows_hold_quoted_newlines_and_know_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'prompt,n\n"two\nlines, quoted",1\n\nplain,2\n')
    rows = rows_of(path)
    assert [row.columns for row in rows] == [
        {"prompt": "two\nlines, quoted", "n": "1"},
        {"prompt": "plain", "n": "2"},
    ]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'prompt\tn\n"one, two"\t1\n'),
        ("a.csv", 'prompt;n\n"one, two";1\n'),
        ("a.csv", "prompt\tn\none, two\t1\n"),
        ("a.csv.zst", 'prompt,n\n"one, two",1\n'),
        ("a.tsv.gz", "\ufeffprompt\tn\r\none, two\t1\r\n"),
    ],
)
def test_fields_stand_between_the_mark_that_the_first_line_has(
    tmp_path: Path, name: str, content: str
) -> None:
    [row] = rows_of(write(tmp_path / name, content))
    assert row.columns == {"prompt": "one, two", "n": "1"}


def test_zstd_files_may_be_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(COMPRESS[".zst"](json_lines([row]).encode()) for row in ROWS))
    assert [row.columns for row in rows_of(str(path))] == ROWS


@pytest.mark.parametrize("open_writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_and_streams_keep_types_and_number_rows(
    tmp_path: Path, open_writer: Any
) -> None:
    rows = [{"n": n, "messages": [{"role": "user", "content": f"hi {n}"}]} for n in range(2500)]
    table, path = pa.Table.from_pylist(rows), tmp_path / "a.arrow"
    with pa.OSFile(str(path), "wb") as file, open_writer(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1200)
    found = rows_of(str(path))
    assert [row.columns for row in found] == rows
    assert [row.where for row in found] == [f"{path}:{number}" for number in range(1, 2501)]


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"n": 1, "messages": messages}] * 3), path)
    rows = rows_of(str(path), skip=1)
    assert [row.columns for row in rows] == [{"n": 1, "messages": messages}] * 2
    assert rows[0].where == f"{path}:2"


def test_texts_stand_between_separators(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\nfirst\nstory\n<|e|>\n\n<|e|>\n second \n<|e|>\n")
    rows = rows_of(path, separator="<|e|>")
    assert [row.columns for row in rows] == [{"text": "first\nstory"}, {"text": "second"}]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:7"]


def test_a_folder_is_read_by_name_with_one_numbering(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / ".cache").mkdir()
    write(folder / "b.jsonl", json_lines(ROWS[1:2]))
    write(folder / "a.json", json.dumps(ROWS[:1]))
    write(folder / "sub" / "c.jsonl.gz", json_lines(ROWS[2:]))
    write(folder / "README.md", "not data")
    write(folder / ".cache" / "d.jsonl", "not JSON")
    rows = rows_of(str(folder))
    assert [row.columns for row in rows] == ROWS
    assert [row.row_id for row in rows] == ["corpus:0", "corpus:1", "corpus:2"]


def test_skip_and_limit_keep_ids_and_read_no_further(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(ROWS) + "not JSON\n")
    assert [row.row_id for row in rows_of(path, skip=1, limit=1)] == ["a:1"]
    assert [row.row_id for row in rows_of(path, skip=1, limit=2)] == ["a:1", "a:2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"n": 1}\n{"n": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"n": 1}\n[1]\n', r"a\.jsonl:2: not a JSON object: got list"),
        ("a.jsonl", b'{"n": 1}\n{"n": "\xff"}\n', r"a\.jsonl:2: not UTF-8: byte 0xff"),
        ("a.jsonl.gz", '{"n": 1}\n\nnull\n', r"a\.jsonl\.gz:3: not a JSON object: got NoneType"),
        ("a.json", '[{"n": 1},\n{"n": x}]', r"a\.json:2: not JSON"),
        ("a.json", '[{"n": 1}\n\n{"n": 2}]', r"a\.json:3: not JSON: wanted ',' or '\]'"),
        ("a.json", '[{"n": 1},\n\n7]', r"a\.json:3: not a JSON object: got int"),
        ("a.json", '[\n{"n": 1},\n', r"a\.json:3: not JSON"),
        ("a.json", b'[\n{"n": "\xc3"}]', r"a\.json:2: not UTF-8: byte 0xc3"),
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv:3: wrong number of fields: a row must have 2, got 1"),
        ("a.csv", 'a,b\n1,2\n3,"x\n', r"a\.csv:3: not CSV: unexpected end of data"),
        ("a.csv", "a,a\n1,2\n", r"a\.csv:1: a column's name appears twice"),
        ("a.parquet", "PAR1 no", r"a\.parquet:1: not a parquet file"),
        ("a.txt", b"one<|endoftext|>\n\xe9", r"a\.txt:2: not UTF-8"),
        ("a.yaml", "n: 1", r"a\.yaml: unknown format; wanted a \.json"),
        ("a.parquet.gz", "", r"a\.parquet\.gz: unknown format"),
        ("a.jsonl", "", r"no rows in '.*a\.jsonl'"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.json", " [ ] ", "no rows"),
        ("a.csv", "a,b\n", "no rows"),
        ("a.txt", " <|endoftext|> ", "no rows"),
    ],
)
def test_bad_files_are_named_by_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(write(tmp_path / name, content))


def test_a_truncated_or_false_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(json_lines(ROWS * 100).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "false.jsonl.gz").write_bytes(b"plain text")
    for name in ("cut", "false"):
        with pytest.raises(DataError, match=rf"{name}\.jsonl\.gz:1: cannot be read"):
            rows_of(str(tmp_path / f"{name}.jsonl.gz"))


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no rows in .* after the first 9"):
        rows_of(write(tmp_path / "a.jsonl", json_lines(ROWS)), skip=9)


@pytest.mark.parametrize("path", ["", "no/such/file.jsonl", "/no/such/folder", "./nothing", "a b"])
def test_a_missing_path_is_named_with_what_is_accepted(path: str) -> None:
    with pytest.raises(DataError, match=r"no data at .*; wanted a \.json.*hub"):
        rows_of(path)


def test_a_folder_without_data_files_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "nothing")
    with pytest.raises(DataError, match="no data files in the folder"):
        rows_of(str(tmp_path))


def test_an_empty_separator_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a separator"):
        rows_of(write(tmp_path / "a.txt", "text"), separator="")


def test_a_hub_name_is_loaded_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(name: str, subset: str | None, *, split: str) -> Any:
        asked.append((name, subset, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = rows_of("openai/gsm8k:main", split="train[:3]", skip=2)
    assert asked == [("openai/gsm8k", "main", "train[:3]")]
    assert [row.columns for row in rows] == ROWS[2:]
    assert rows[0].row_id == "openai/gsm8k:main/train[:3]:2"
    rows_of("imdb")
    assert asked[-1] == ("imdb", None, "train")


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'my-data' is not on this machine, .*offline.*; wanted"):
        rows_of("my-data")


def test_real_sets_have_the_rows_that_their_index_says(shared_data: Path) -> None:
    assert len(rows_of(str(shared_data / "gsm8k/train.jsonl"))) == 7_473
    assert len(rows_of(str(shared_data / "gsm8k/test.jsonl"))) == 1_319
    assert len(rows_of(str(shared_data / "hh-rlhf/helpful-base/test.jsonl.gz"))) == 2_354
    assert len(rows_of(str(shared_data / "preference/llamafactory_dpo_zh_demo.json"))) == 300
    assert len(rows_of(str(shared_data / "sft/llamafactory_identity.json"))) == 91
    stories = rows_of(str(shared_data / "text/tinystories_sample.txt"))
    # 2,316 separators stand between them: the last story was cut off when the sample was drawn.
    assert len(stories) == 2_317
    assert len({row.row_id for row in stories}) == 2_317


def test_real_json_rows_begin_in_the_lines_that_they_name(shared_data: Path) -> None:
    path = shared_data / "preference/llamafactory_dpo_en_demo.json"
    lines = path.read_text().splitlines()
    rows = rows_of(str(path))
    assert len(rows) == 300
    for row in rows:
        assert lines[int(row.where.rpartition(":")[2]) - 1].strip() == "{"


JSON_ROW = {
    "chat": [{"role": "user", "content": "q"}, {"role": "tool", "content": 2}],
    "tool": {"name": "add", "schema": {"properties": {"x": {"type": "integer"}}}},
    "answer": '"4"',
    "none": None,
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_json_within_arrow_is_read_as_what_it_says(tmp_path: Path, suffix: str) -> None:
    from datasets import Dataset, Features, Json, List, Value

    tool = {"name": Value("string"), "schema": Json()}
    features = {"chat": List(Json()), "tool": tool, "answer": Value("string"), "none": List(Json())}
    table = Dataset.from_list([JSON_ROW], features=Features(features)).data.table
    assert isinstance(table.schema.field("tool").type.field("schema").type, pa.JsonType)
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    assert [row.columns for row in rows_of(str(path))] == [JSON_ROW]


def test_json_within_arrow_that_is_none_is_a_fault_of_its_row(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(['{"b": 1}', '{"b": ', None], pa.json_())})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    first, second, third = read_rows(SourceConfig(path=str(path)))
    assert isinstance(first, Row) and first.columns == {"a": {"b": 1}}
    assert isinstance(second, RowError) and str(second).startswith(f"{path}:2: cannot be read")
    assert isinstance(third, Row) and third.columns == {"a": None}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_may_be_the_messages_themselves(tmp_path: Path, name: str) -> None:
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        [{"from": "human", "value": "q"}],
    ]
    content = json.dumps(chats) if name == "a.json" else json_lines(chats)
    rows = rows_of(write(tmp_path / name, content))
    assert [row.columns for row in rows] == [{"messages": chat} for chat in chats]
    for other in ([[1]], [[{"text": "a"}]], [["a"]]):
        with pytest.raises(RowError, match=r"not a JSON object: got list; a row is an object"):
            rows = [*chats, *other]
            content = json.dumps(rows) if name == "a.json" else json_lines(rows)
            rows_of(write(tmp_path / name, content))
