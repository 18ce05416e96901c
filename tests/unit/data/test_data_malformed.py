"""Whatever is wrong with a row: named by file, line and reason, or counted, and nothing else."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loads import load_labelled, load_pairs, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.errors import DataError, RowError

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CHAT = {"messages": [USER, ANSWER]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
RANKING = {"prompt": "q", "answers": ["a", "b"], "ranks": [0, 1]}
SCORED = {**PAIR, "score_chosen": 2, "score_rejected": 1}
LABELLED = {"prompt": "q", "completion": "a", "label": True}
ALPACA = {"instruction": "q", "output": "a"}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
TREE = {
    "prompt": {
        "role": "prompter",
        "text": "q",
        "replies": [
            {"role": "assistant", "text": "a", "rank": 0},
            {"role": "assistant", "text": "b", "rank": 1},
        ],
    }
}
IMPLICIT = {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "b"}]}
IMPLICIT_TEXT = {"chosen": "User: q\nAI: a", "rejected": "User: q\nAI: b"}
CHOICE = {"prompt": "q", "a": "a", "b": "b", "better": "a"}
SHP = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
STARRED = {"prompt": "q", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 0}]}
GRADED = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.2}
LISTS = {"prompt": '["q"]', "response_a": '["a"]', "response_b": '["b"]',
         "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}  # fmt: skip
LOADERS = {"pairs": load_pairs, "sft": load_sft, "labelled": load_labelled}


def tree(**root: Any) -> dict[str, Any]:
    return {"prompt": {**TREE["prompt"], **root}}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


# The job, a good row, a bad one (as text: as it stands in the file), and why it is bad.
BAD_ROWS: list[tuple[str, dict[str, Any], Any, str]] = [
    ("pairs", PAIR, '{"prompt": "q", "chosen": ', "not JSON"),
    ("pairs", PAIR, "prompt: q", "not JSON"),
    ("pairs", PAIR, '{"prompt": "q"} {"prompt": "q"}', "not JSON"),
    ("pairs", PAIR, '{"prompt": ' + "7" * 5000 + "}", "not JSON"),
    ("pairs", PAIR, "[" * 100_000, "nested too deeply"),
    ("pairs", PAIR, "[]", "not a JSON object"),
    ("pairs", PAIR, "null", "not a JSON object"),
    ("pairs", PAIR, '"prompt"', "not a JSON object"),
    ("pairs", PAIR, b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}', "not UTF-8"),
    ("pairs", PAIR, b"\xc3\x28", "not UTF-8"),
    ("pairs", PAIR, b"\x00\x80", "not UTF-8"),
    ("pairs", PAIR, '{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}', "lone surrogate"),
    ("pairs", PAIR, {**PAIR, "chosen": [{**ANSWER, "content": "\udc00"}]}, "lone surrogate"),
    ("pairs", PAIR, {}, "no column 'chosen'"),
    ("pairs", PAIR, without(PAIR, "prompt"), "no column 'prompt'"),
    ("pairs", PAIR, without(PAIR, "chosen"), "no column 'chosen'"),
    ("pairs", PAIR, without(PAIR, "rejected"), "no column 'rejected'"),
    ("pairs", PAIR, {**PAIR, "rejected": None}, "no column 'rejected'"),
    ("pairs", PAIR, ALPACA, "no column 'chosen'"),
    ("pairs", PAIR, {**PAIR, "prompt": 5}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "prompt": True}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "prompt": []}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen": 1.5}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen": ["a"]}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen": {}}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen": [{**ANSWER, "content": None}]}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen": [USER]}, "roles out of order"),
    ("pairs", PAIR, {**PAIR, "prompt": [USER, ANSWER], "chosen": [ANSWER]}, "roles out of order"),
    ("pairs", PAIR, {**PAIR, "margin": "much"}, "wrong type"),
    ("pairs", PAIR, '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}', "wrong type"),
    ("pairs", PAIR, {**PAIR, "margin": [1]}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "margin": -1}, "negative margin"),
    ("pairs", PAIR, {**PAIR, "score_rejected": 1}, "no column 'score_chosen'"),
    ("pairs", PAIR, '{"prompt": "q", "chosen": "a", "chosen": "b"}', "a key appears twice"),
    ("pairs", CHOICE, {**CHOICE, "better": "c"}, "unknown label"),
    ("pairs", CHOICE, without(CHOICE, "better"), "no column 'better'"),
    ("pairs", CHOICE, without(CHOICE, "b"), "no column 'b'"),
    ("pairs", SHP, {**SHP, "labels": 2}, "unknown label"),
    ("pairs", SHP, {**SHP, "labels": [1]}, "unknown label"),
    ("pairs", SHP, {**SHP, "labels": None}, "no label"),
    ("pairs", IMPLICIT_TEXT, {**IMPLICIT_TEXT, "rejected": "b"}, "no common prompt"),
    ("pairs", SCORED, {**SCORED, "score_rejected": "Infinity"}, "wrong type"),
    ("pairs", SCORED, without(SCORED, "score_rejected"), "no column 'score_rejected'"),
    ("pairs", SCORED, {**SCORED, "score_chosen": 10**400}, "wrong type"),
    ("pairs", SCORED, {**SCORED, "score_chosen": True}, "wrong type"),
    ("pairs", PAIR, {**PAIR, "chosen_score": 1, "rejected_score": 1.0}, "tie"),
    ("pairs", PAIR, {**PAIR, "chosen_score": 1, "rejected_score": 2}, "worse scored higher"),
    ("pairs", IMPLICIT, {**IMPLICIT, "chosen": []}, "wrong type"),
    ("pairs", IMPLICIT, {**IMPLICIT, "chosen": "a"}, "wrong type"),
    ("pairs", IMPLICIT, {**IMPLICIT, "chosen": [ANSWER]}, "no common prompt"),
    (
        "pairs",
        IMPLICIT,
        {**IMPLICIT, "chosen": [{**USER, "content": "?"}, ANSWER]},
        "no common prompt",
    ),
    ("pairs", HH, {**HH, "chosen": "Human: q\n\nAssistant: a"}, "not a transcript"),
    ("pairs", HH, {**HH, "chosen": "\n\nAssistant: a"}, "not a transcript"),
    ("pairs", HH, {**HH, "chosen": "\n\nHuman: other\n\nAssistant: a"}, "no common prompt"),
    ("pairs", HH, {**HH, "chosen": HH["rejected"]}, "equal answers"),
    ("pairs", HH, {**HH, "chosen": "\n\nHuman: q\n\nAssistant:"}, "empty answer"),
    ("pairs", RANKING, {**RANKING, "answers": "a"}, "wrong type"),
    ("pairs", RANKING, {**RANKING, "answers": []}, "no answers"),
    ("pairs", RANKING, {**RANKING, "answers": [{"said": "a"}, {"said": "b"}]}, "wrong type"),
    ("pairs", RANKING, {**RANKING, "answers": [{"text": "a", "rank": "first"}] * 2}, "wrong type"),
    ("pairs", RANKING, {**RANKING, "answers": ["a", None]}, "wrong type"),
    (
        "pairs",
        STARRED,
        {"prompt": "q", "answers": [{"text": "a", "stars": 1}, {"text": "b"}]},
        "answers without a known rank or score",
    ),
    ("pairs", GRADED, {**GRADED, "preference": 3}, "unknown label"),
    ("pairs", GRADED, {**GRADED, "preference": 1.5}, "tie"),
    ("pairs", GRADED, {**GRADED, "preference": 0}, "tie"),
    ("pairs", LISTS, {**LISTS, "response_a": '["a", "b"]'}, "wrong number of turns"),
    ("pairs", LISTS, {**LISTS, "response_a": "[null]"}, "empty answer"),
    ("pairs", LISTS, {**LISTS, "response_a": '{"a": 1}'}, "wrong type"),
    ("pairs", LISTS, {**LISTS, "response_a": "a"}, "wrong type"),
    ("pairs", RANKING, {**RANKING, "answers": ["a"], "ranks": [0]}, "a single answer"),
    ("pairs", RANKING, {**RANKING, "ranks": [0]}, "wrong number of ranks"),
    ("pairs", RANKING, {**RANKING, "ranks": [0, 0]}, "tie"),
    ("pairs", RANKING, {**RANKING, "ranks": ["first", "second"]}, "wrong type"),
    ("pairs", TREE, {"prompt": "q"}, "wrong type"),
    ("pairs", TREE, tree(replies={}), "no ranked replies"),
    ("pairs", TREE, tree(replies="none"), "wrong type"),
    ("pairs", TREE, tree(replies=[1, 2]), "wrong type"),
    ("pairs", TREE, tree(role="wizard"), "wrong type"),
    ("pairs", TREE, tree(text=None), "wrong type"),
    (
        "pairs",
        TREE,
        tree(replies=[{**reply, "rank": "first"} for reply in TREE["prompt"]["replies"]]),
        "wrong type",
    ),
    ("labelled", LABELLED, {**LABELLED, "label": "maybe"}, "wrong type"),
    ("labelled", LABELLED, {**LABELLED, "label": 2}, "wrong type"),
    ("labelled", LABELLED, without(LABELLED, "label"), "no column 'label'"),
    ("labelled", LABELLED, {**LABELLED, "completion": "\n"}, "empty answer"),
    ("sft", CHAT, {"messages": "hi"}, "wrong type"),
    ("sft", CHAT, {"messages": []}, "wrong type"),
    ("sft", CHAT, {"messages": [USER, "a"]}, "wrong type"),
    ("sft", CHAT, {"messages": [{"role": "user"}]}, "wrong type"),
    ("sft", CHAT, {"messages": [{"role": 3, "content": "a"}]}, "wrong type"),
    ("sft", CHAT, {"messages": [USER, {"role": "wizard", "content": "a"}]}, "unknown role"),
    ("sft", CHAT, {"messages": [USER]}, "no message of the role 'assistant' to train"),
    ("sft", SHAREGPT, {"conversations": [{"from": "human"}]}, "wrong type"),
    ("sft", SHAREGPT, {"conversations": {"from": "gpt", "value": "a"}}, "wrong type"),
    ("sft", SHAREGPT, {**SHAREGPT, "system": 5}, "wrong type"),
    ("sft", ALPACA, {**ALPACA, "output": ["a"]}, "wrong type"),
    ("sft", ALPACA, {**ALPACA, "history": [["a"]]}, "wrong type"),
    ("sft", ALPACA, {**ALPACA, "history": [["a", 7]]}, "wrong type"),
    ("sft", ALPACA, {**ALPACA, "input": 3}, "wrong type"),
    ("sft", {"text": "t"}, {"text": "  "}, "empty text"),
    ("sft", {"text": "t"}, {"text": "x" * 10_000_000}, "too long"),
    ("pairs", PAIR, {**PAIR, "rejected": "x " * 5_000_000}, "too long"),
]
COUNTED = {
    "worse scored higher", "equal answers", "empty answer", "empty text", "tie",
    "no ranked replies", "too long", "no answers", "a single answer",
    "no message of the role 'assistant' to train",
}  # fmt: skip


def line(row: Any) -> bytes:
    if isinstance(row, bytes):
        return row
    return (row if isinstance(row, str) else json.dumps(row)).encode()


@pytest.mark.parametrize(
    ("job", "good", "bad", "reason"),
    BAD_ROWS,
    ids=[f"{i}-{row[3]}" for i, row in enumerate(BAD_ROWS)],
)
def test_a_bad_row_is_named_or_counted_and_leaves_its_neighbours_alone(
    tmp_path: Path, chat_tokenizer: Any, job: str, good: dict[str, Any], bad: Any, reason: str
) -> None:
    def load(*rows: Any, on_bad_row: str = "error") -> Loaded[Any]:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b"".join(line(row) + b"\n" for row in rows))
        config = DataConfig.model_validate(
            {"path": str(path), "on_bad_row": on_bad_row, "over_length": "drop"}
        )
        return LOADERS[job](config, chat_tokenizer, max_length=200)

    if reason not in COUNTED:
        with pytest.raises(RowError) as caught:
            load(good, bad, good)
        assert caught.value.reason == reason
        assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl:2: {reason}")
        assert len(str(caught.value)) < 600

    loaded = load(good, bad, good, on_bad_row="skip")
    assert {name: left.count for name, left in loaded.report.left_out.items()} == {reason: 1}
    assert loaded.report.left_out[reason].first.startswith(f"{tmp_path}/rows.jsonl:2")
    assert loaded.report.num_read == len(loaded.rows) + 1
    for kept, expected in zip(loaded.rows, load(good, good).rows, strict=True):
        ids = "token_ids_T" if job == "sft" else "prompt_ids_T"
        assert getattr(kept, ids).tolist() == getattr(expected, ids).tolist()
    last = loaded.rows[-1].example_id
    assert last.startswith("rows:2")


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that holds `GOOD` texts, and one thing that is wrong with it.

    `line` is where; `kept` are the numbers of the good texts that survive `skip`.
    """

    name: str
    content: bytes
    line: int
    reason: str
    kept: tuple[int, ...]


def texts(*numbers: int) -> list[dict[str, str]]:
    return [{"text": f"text {number}"} for number in numbers]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, compression="none", use_dictionary=False)
    return file.getvalue()


def not_utf8_in_parquet() -> bytes:
    return parquet(texts(1, 2, 3)).replace(b"text 2", b"text \xff")


NOISE = [{"text": f"text {n}", "noise": random.Random(n).random()} for n in range(5_000)]
NOISE_LINES = b"".join(line(row) + b"\n" for row in NOISE)
GZ = gzip.compress(NOISE_LINES)
BAD_FILES = [
    BadFile(name="a.json", content=b'[{"text": "text 1"}, 7, {"text": "text 2"}]', line=1,
            reason="not a JSON object", kept=(1, 2)),
    BadFile(name="a.json", content=b'[{"text": "text 1"},\n{"text": x}]', line=2,
            reason="not JSON", kept=(1,)),
    BadFile(name="a.json", content=b'[{"text": "text 1"},\n\n{"text": "text 2"}', line=3,
            reason="not JSON", kept=(1, 2)),
    BadFile(name="a.json", content=b'[{"text": "text 1"}\n{"text": "text 2"}]', line=2,
            reason="not JSON", kept=(1,)),
    BadFile(name="a.json", content=b'[{"text": "text 1"}]\n[{"text": "text 2"}]', line=2,
            reason="not JSON", kept=(1,)),
    BadFile(name="a.json", content=b'[{"text": "text 1"},\n{"text": "\xff"},\n{"text": "text 2"}]',
            line=2, reason="not UTF-8", kept=(1, 2)),
    BadFile(name="a.csv", content=b"text,n\ntext 1,1\ntext 2\ntext 3,3\n", line=3,
            reason="wrong number of fields", kept=(1, 3)),
    BadFile(name="a.csv", content=b'text,n\ntext 1,1\n"text" 2,2\ntext 3,3\n', line=3,
            reason="not CSV", kept=(1, 3)),
    BadFile(name="a.csv", content=b'text,n\ntext 1,1\n"text 2,2\ntext 3,3\n', line=3,
            reason="not CSV", kept=(1,)),
    BadFile(name="a.csv", content=b"text,n\r\ntext 1,1\r\n\xff,2\r\ntext 3,3\r\n", line=3,
            reason="not UTF-8", kept=(1, 3)),
    BadFile(name="b.csv", content=b"text,text\ntext 1,1\n", line=1,
            reason="a column's name appears twice", kept=()),
    BadFile(name="a.txt", content=b"text 1<|endoftext|>\n\xe9<|endoftext|>text 2", line=2,
            reason="not UTF-8", kept=(1, 2)),
    BadFile(name="a.parquet", content=parquet(texts(1, 2))[:-30], line=1,
            reason="not a parquet file", kept=()),
    BadFile(name="a.parquet", content=not_utf8_in_parquet(), line=2,
            reason="not UTF-8", kept=(1, 3)),
    BadFile(name="a.jsonl.gz", content=b"plain", line=1, reason="cannot be read", kept=()),
    BadFile(name="a.jsonl.gz", content=GZ[:40], line=1, reason="cannot be read", kept=()),
    BadFile(name="a.json.gz", content=GZ[: len(GZ) // 2], line=1,
            reason="cannot be read", kept=()),
    BadFile(name="a.jsonl", content=b'\xff\xfe{\x00"\x00}\x00\n', line=1,
            reason="not UTF-8", kept=()),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FILES, ids=[f"{f.name}-{f.reason}" for f in BAD_FILES])
def test_a_bad_file_is_named_or_counted_and_the_rest_is_read(
    tmp_path: Path, chat_tokenizer: Any, bad: BadFile
) -> None:
    folder = tmp_path / "folder.jsonl"  # a folder, whatever its name
    folder.mkdir()
    (folder / bad.name).write_bytes(bad.content)
    (folder / "z.jsonl").write_bytes(line(texts(9)[0]))
    path = str(folder)
    with pytest.raises(RowError) as caught:
        load_sft(DataConfig(path=path), chat_tokenizer, max_length=99)
    assert (caught.value.where, caught.value.reason) == (
        f"{folder}/{bad.name}:{bad.line}",
        bad.reason,
    )
    loaded = load_sft(DataConfig(path=path, on_bad_row="skip"), chat_tokenizer, max_length=99)
    assert [chat_tokenizer.decode(row.token_ids_T) for row in loaded.rows] == [
        f"<s>text {number}</s>" for number in (*bad.kept, 9)
    ]
    assert {name: left.count for name, left in loaded.report.left_out.items()} == {bad.reason: 1}


def test_the_rows_before_a_cut_of_a_gzip_survive(tmp_path: Path, chat_tokenizer: Any) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(GZ[: len(GZ) // 2])
    config = DataConfig(path=str(path), on_bad_row="skip")
    loaded = load_sft(config, chat_tokenizer, max_length=99)
    assert 1_000 < len(loaded.rows) < len(NOISE)
    [(reason, left)] = loaded.report.left_out.items()
    assert (reason, left.count) == ("cannot be read", 1)
    assert left.first.startswith(f"{path}:{len(loaded.rows) + 1}: Compressed file ended")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + line(texts(1)[0]) + b"\r\n\r\n" + line(texts(2)[0])),
        ("a.csv", b'\xef\xbb\xbftext\r\n"text 1"\r\ntext 2\r\n'),
        ("a.csv", b"text\ntext 1\n" + b"text 2\n"),
        ("a.jsonl", b'{"text": "text 1", "n": NaN}\n{"text": "text 2"}'),
    ],
)
def test_what_is_merely_unusual_is_read(
    tmp_path: Path, chat_tokenizer: Any, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    loaded = load_sft(DataConfig(path=str(tmp_path / name)), chat_tokenizer, max_length=99)
    assert [chat_tokenizer.decode(row.token_ids_T) for row in loaded.rows] == [
        "<s>text 1</s>",
        "<s>text 2</s>",
    ]
    assert not loaded.report.left_out


def test_a_field_of_csv_may_be_as_long_as_it_likes(tmp_path: Path, chat_tokenizer: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 1_000_000 + "\nshort\n")
    config = DataConfig(path=str(path), over_length="drop")
    loaded = load_sft(config, chat_tokenizer, max_length=99)
    assert (len(loaded.rows), list(loaded.report.left_out)) == (1, ["too long"])


def test_the_format_is_that_of_the_first_row_that_shows_one(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b"{", line({"what": 1}), line(PAIR), line(CHAT)]))
    with pytest.raises(RowError, match=r"a\.jsonl:1: not JSON"):
        load_pairs(DataConfig(path=str(path)), chat_tokenizer, max_length=99)
    loaded = load_pairs(
        DataConfig(path=str(path), on_bad_row="skip"), chat_tokenizer, max_length=99
    )
    assert len(loaded.rows) == 1
    assert {name: left.count for name, left in loaded.report.left_out.items()} == {
        "not JSON": 1,
        "no known format has these columns": 1,
        "no column 'chosen'": 1,
    }


def test_a_file_without_one_good_row_is_an_error_with_its_counts(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{\n[]\n{\n")
    with pytest.raises(DataError, match=r"no row of 3 is left; left out: 2 not JSON \(first .*:1"):
        load_pairs(DataConfig(path=str(path), on_bad_row="skip"), chat_tokenizer, max_length=99)
