"""The order of rows for a seed: what a run was trained on once, it is trained on again.

The expectations were written down before mixtures and shuffles were last rewritten. A change of any
of them changes every run that is repeated, and keeps every run from being resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loads import load_labelled, load_pairs, load_prompts, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.order import RowsInOrder


def digest(names: Sequence[object]) -> str:
    return hashlib.sha256(" ".join(map(str, names)).encode()).hexdigest()[:16]


@pytest.fixture
def sources(tmp_path: Path) -> list[dict[str, Any]]:
    """Three data sets of 7, 40 and 23 rows; a row in ten of the second is malformed."""
    for name, num_rows in (("a", 7), ("b", 40), ("c", 23)):
        rows = [{"text": f"{name} {n}"} for n in range(num_rows)]
        if name == "b":
            rows[9::10] = [{"text": ""}] * len(rows[9::10])
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    return [
        {"path": str(tmp_path / "a.jsonl"), "probability": 0.5},
        {"path": str(tmp_path / "b.jsonl"), "probability": 2.0, "split": "train[10%:]+train[:2]"},
        {"path": str(tmp_path / "c.jsonl"), "probability": 1.0, "skip": 3, "limit": 15},
    ]


MIXTURES = {
    ("until_all", 0): (
        62,
        ["1/b:4", "1/b:5", "0/a:0", "0/a:1", "2/c:3", "2/c:4"],
        ["0/a:2@2", "1/b:0", "1/b:1"],
        "43c29d767566841f",
    ),
    ("until_all", 7): (
        57,
        ["1/b:4", "2/c:3", "2/c:4", "1/b:5", "1/b:6", "2/c:5"],
        ["1/b:1", "1/b:4@2", "2/c:17"],
        "0abd50ce607b23d5",
    ),
    ("until_first", 0): (
        33,
        ["1/b:4", "1/b:5", "0/a:0", "0/a:1", "2/c:3", "2/c:4"],
        ["1/b:20", "1/b:21", "0/a:6"],
        "0ac6efe37ba1b343",
    ),
    ("until_first", 7): (
        53,
        ["1/b:4", "2/c:3", "2/c:4", "1/b:5", "1/b:6", "2/c:5"],
        ["1/b:37", "1/b:38", "0/a:6"],
        "39cb9862eabfe129",
    ),
}


@pytest.mark.parametrize(("mixing", "seed"), MIXTURES)
def test_a_mixture_has_the_order_that_it_always_had(
    sources: list[dict[str, Any]], chat_tokenizer: Any, mixing: str, seed: int
) -> None:
    data = DataConfig.model_validate({"sources": sources, "mixing": mixing, "on_bad_row": "skip"})
    ids = [row.example_id for row in load_sft(data, chat_tokenizer, max_length=99, seed=seed).rows]
    found = (len(ids), ids[:6], ids[-3:], digest(ids))
    assert found == MIXTURES[mixing, seed]


def test_a_large_mixture_has_the_order_that_it_always_had(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    named = []
    for name, num_rows, share in (("x", 5_000, 0.7), ("y", 1_100, 0.2), ("z", 40, 0.01)):
        lines = "".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(num_rows))
        (tmp_path / f"{name}.jsonl").write_text(lines)
        named.append({"path": str(tmp_path / f"{name}.jsonl"), "probability": share})
    data = DataConfig.model_validate({"sources": named})
    rows = load_prompts(data, chat_tokenizer, context_tokens=99, seed=11).rows
    ids = [row.prompt_id for row in rows]
    assert (len(ids), ids[-2:], digest(ids)) == (6432, ["0/x:4998", "0/x:4999"], "ad88c553614e7ebd")


SPLITS = {
    "train": ("449bdd9ad2b777b2", 0, 22),
    "train[:500]": ("449bdd9ad2b777b2", 0, 22),
    "train[7:19]": ("3823ade2bca7c48e", 7, 18),
    "train[25%:75%]": ("6357c7f288f211f4", 6, 16),
    "train[-5:]": ("da2884511ae1214e", 18, 22),
    "train[:10%]+train[-10%:]": ("13bf71f5b2655570", 0, 22),
    "train[50%:-2]+train[3:5]": ("6841afd146ae2af8", 12, 4),
}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_with_skip_and_limit_give_the_rows_that_they_always_gave(
    sources: list[dict[str, Any]], chat_tokenizer: Any, split: str
) -> None:
    taken = {}
    for skip, limit in ((0, 0), (2, 0), (1, 3)):
        data = DataConfig(path=sources[2]["path"], split=split, skip=skip, limit=limit)
        rows = load_sft(data, chat_tokenizer, max_length=99).rows
        taken[skip, limit] = [int(row.example_id.removeprefix("c:")) for row in rows]
    assert taken[2, 0] == taken[0, 0][2:]
    assert taken[1, 3] == taken[0, 0][1:4]
    whole = taken[0, 0]
    assert (digest(whole), whole[0], whole[-1]) == SPLITS[split]


def test_several_examples_of_a_row_keep_their_order(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [
        {"prompt": f"q{n}", "answers": [f"a{n}", f"b{n}", f"c{n}"][: 2 + n % 2]} for n in range(4)
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(path))
    pairs = load_pairs(data, chat_tokenizer, max_length=99).rows
    assert [row.example_id for row in pairs] == [
        "r:0", "r:1/0", "r:1/1", "r:1/2", "r:2", "r:3/0", "r:3/1", "r:3/2",
    ]  # fmt: skip
    labelled = load_labelled(data, chat_tokenizer, max_length=99).rows
    assert [
        (row.example_id, *(chat_tokenizer.decode(ids)[:2] for ids in row.answer_ids_K))
        for row in labelled
    ] == [
        ("r:0/0", "a0", "a1"), ("r:0/1", "b0", "a1"),
        ("r:1/0", "a1", "a2"), ("r:1/1", "b1", "a2"), ("r:1/2", "c1", "a2"),
        ("r:2/0", "a2", "a3"), ("r:2/1", "b2", "a3"),
        ("r:3/0", "a3", "a0"), ("r:3/1", "b3", "a0"), ("r:3/2", "c3", "a0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("num_rows", "seed", "expected"),
    [
        (10, 0, "0f50f87b8ab6c87b"),
        (1_000, 3, "ec72ea30548e35fa"),
        (4_097, 12345, "aa8a7c1f92f5cf29"),
    ],
)
def test_epochs_have_the_orders_that_they_always_had(
    num_rows: int, seed: int, expected: str
) -> None:
    order = RowsInOrder(range(num_rows), seed=seed)
    assert digest(order.take(2 * num_rows + 5)) == expected
