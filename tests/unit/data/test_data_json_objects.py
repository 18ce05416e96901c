"""JSON files that are one object, and JSON that is read a window at a time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.files import reading
from rlhf_ray.data.files.reading import JsonWindow
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.data.row import Row
from rlhf_ray.errors import DataError, RowError

A, B = {"text": "a"}, {"text": "b"}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def read(path: Path, content: Any, **source: Any) -> list[Row | RowError]:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return list(read_rows(SourceConfig(path=str(path), **source)))


def columns(rows: list[Row | RowError]) -> list[Any]:
    return [row.columns if isinstance(row, Row) else row.reason for row in rows]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"data": [A, B]}, [A, B]),
        ({"version": "1.1", "data": [A, B], "license": {"name": "MIT"}}, [A, B]),
        ({"anything": [A]}, [A]),
        ({"train": [A], "test": [B]}, [A]),
        ({"rows": [A], "features": []}, [A]),
        ({"text": ["a", "b"], "n": [1, 2]}, [{"text": "a", "n": 1}, {"text": "b", "n": 2}]),
        ({"messages": [CHAT, CHAT]}, [{"messages": CHAT}] * 2),
        ({"text": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}},
         [{"text": "a", "n": 1}, {"text": "b", "n": 2}]),
        ({"messages": CHAT}, [{"messages": CHAT}]),
        ({"messages": CHAT, "tools": [A]}, [{"messages": CHAT, "tools": [A]}]),
        ({"prompt": "p", "answers": ["a", "b"]}, [{"prompt": "p", "answers": ["a", "b"]}]),
        ({"prompt": {"text": "p"}, "n": {"x": 1}}, [{"prompt": {"text": "p"}, "n": {"x": 1}}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_one_object_are_found(
    tmp_path: Path, content: Any, expected: list[Any], indent: int | None
) -> None:
    assert columns(read(tmp_path / "a.json", json.dumps(content, indent=indent))) == expected


def test_rows_under_a_key_know_their_lines_and_the_files_end(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = read(path, '{"version": 1,\n\n"data": [\n{"text": "a"},\n\n{"text": "b"}]}\n')
    assert [row.where for row in rows] == [f"{path}:4", f"{path}:6"]
    first, second = read(path, '{"version": 1, "data": [\n{"text": "a"},\n{"text": x}]}\n')
    assert columns([first]) == [A]
    assert str(second) == f"{path}:3: not JSON: Expecting value at column 10"
    first, second = read(path, '{"data": [{"text": "a"}],\n"version" 1}\n')
    assert columns([first]) == [A]
    assert str(second) == f"{path}:2: not JSON: wanted ':' after a key, got '1}}\\n'"


def test_keys_are_splits(tmp_path: Path) -> None:
    path, content = tmp_path / "a.json", {"train": [A], "test": [B], "n": 1}
    [row] = read(path, content, split="test")
    assert isinstance(row, Row)
    assert (row.columns, row.row_id) == (B, "a/test:0")
    assert columns(read(path, content, split="train+test[:1]")) == [A, B]
    assert columns(read(path, {"features": [A], "rows": [B]}, split="rows")) == [B]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [A], "b": [B]}, r"no split 'train'; there: split a \(a\), split b \(b\)\. Take"),
        ({"prompt": "p", "completions": [A]}, r"no split 'train'; there: split completions"),
        ({"test": [A]}, r"no split 'train'; there: split test"),
        ({"data": []}, "no rows in"),
        ('{"data": [{"text": "a"}], "data": []}', r"a\.json:1: a key appears twice: 'data'"),
        ({"text": ["a", "b"], "n": [1]}, r"a\.json:1: columns of different lengths: text 2, n 1"),
        ('{\n "text": "a"\n}\n{\n "text": "b"\n}\n', r"a\.json:4: .*one row a line"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_refused_with_the_keys_found(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        for row in read(tmp_path / "a.json", content):
            if isinstance(row, RowError):
                raise row


def test_in_a_folder_an_object_with_several_lists_is_refused_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps([B]))
    (tmp_path / "a.json").write_text(json.dumps({"features": [A], "turns": [B]}))
    fault, row = read_rows(SourceConfig(path=str(tmp_path)))
    assert isinstance(fault, RowError)
    assert str(fault) == (
        f"{tmp_path}/a.json:1: several ways to find the rows: keys features, turns: take one by "
        "`split: features`, or write a row as JSON lines"
    )
    assert columns([row]) == [B]


def test_json_lines_under_another_name_keep_the_lines_behind_a_cut_one(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.json", '{"text": "a\n{"text": "b"}\n{"text": "a"}\n')
    assert columns(rows) == ["not JSON", B, A]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=8),
    read_bytes=st.integers(1, 12),
    indent=st.sampled_from([None, 0, 1]),
    ascii=st.booleans(),
)
def test_a_window_of_any_size_gives_what_json_gives(
    rows: list[Any], read_bytes: int, indent: int | None, ascii: bool
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    lines_before = [text[:at].count("\n") for at in range(len(text))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_READ_BYTES", read_bytes)
        window = JsonWindow(io.BytesIO(text.encode("utf-8", "surrogatepass")), "a")
        assert window.take("[")
        for expected in rows:
            window.peek()
            assert window.line - 1 in lines_before
            assert window.value() == expected
            window.take(",")
        assert window.take("]")
        assert window.peek() == ""
    assert window.line == 1 + text.count("\n")


@pytest.mark.parametrize("read_bytes", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[{"a": 1},\n {"b": tru}]', "a:2: not JSON: Expecting value at column 8"),
        ('[{"a": 1}, {"b": "x"', "a:1: not JSON: Expecting ',' delimiter at column 21"),
        ('[{"a": 1}, {"b":\n\n  -}]', "a:1: not JSON: Expecting value at column 3 of line 3"),
        ('[{"a": 1, "a": 2}, {}]', "a:1: a key appears twice: 'a' is 1, and 2"),
    ],
)
def test_a_fault_has_its_place_wherever_the_window_ends(
    text: str, fault: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_READ_BYTES", read_bytes)
    window = JsonWindow(io.BytesIO(text.encode()), "a")
    window.take("[")
    faults = []
    while not window.is_broken and window.peek() not in ("", "]"):
        value = window.value()
        faults += [str(value)] if isinstance(value, RowError) else []
        window.take(",")
    assert faults == [fault]
