from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.data import SourceConfig
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.data.files.splits import parse_split
from rlhf_ray.data.row import Row
from rlhf_ray.errors import DataError


def numbers(path: Path, **source: object) -> list[int]:
    config = SourceConfig.model_validate({"path": str(path), **source})
    return [row.columns["n"] for row in read_rows(config) if isinstance(row, Row)]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    path = tmp_path / "ten.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(10)))
    return path


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(10)),
        ("train[:]", range(10)),
        ("train[:3]", range(3)),
        ("train[7:]", range(7, 10)),
        ("train[2:4]", range(2, 4)),
        ("train[:99]", range(10)),
        ("train[-3:]", range(7, 10)),
        ("train[:-3]", range(7)),
        ("train[-99:2]", range(2)),
        ("train[10%:30%]", range(1, 3)),
        ("train[-20%:]", range(8, 10)),
        ("train[:50%]+train[-1:]", [0, 1, 2, 3, 4, 9]),
        ("train[50%:-2]", range(5, 8)),
    ],
)
def test_slices_are_those_of_datasets(ten: Path, split: str, expected: range) -> None:
    assert numbers(ten, split=split) == list(expected)


@given(start=st.integers(-120, 120), stop=st.integers(-120, 120), num_rows=st.integers(0, 100))
def test_absolute_slices_are_pythons(start: int, stop: int, num_rows: int) -> None:
    [range_] = parse_split(f"train[{start}:{stop}]")
    low, high = range_.resolve(num_rows)
    assert list(range(num_rows))[low : max(low, high)] == list(range(num_rows))[start:stop]


def test_skip_and_limit_count_from_the_slice_and_ids_from_the_file(ten: Path) -> None:
    config = SourceConfig(path=str(ten), split="train[4:]", skip=1, limit=2)
    rows = [row for row in read_rows(config) if isinstance(row, Row)]
    assert [row.row_id for row in rows] == ["ten:5", "ten:6"]
    assert [row.where for row in rows] == [f"{ten}:6", f"{ten}:7"]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[", "split must be like"),
        ("train[1:2:3]", "split must be like"),
        ("train[5]", "split must be like"),
        ("", "split must be like"),
        ("train[a:b]", "split must be like"),
        ("test[:5]", "a local data set has one split, 'train', got 'test'"),
        ("train[:120%]", "a share in split must be at most 100%"),
        ("train[5:5]", "no rows in"),
        ("train[20:]", "no rows in"),
    ],
)
def test_bad_expressions_are_refused(ten: Path, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        numbers(ten, split=split)
