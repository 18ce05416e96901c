"""Streams: every example once a pass, a resumed one goes on where it was, and rows are counted."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from loads import load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.data.examples.preferences import Pairs
from rlhf_ray.data.examples.prompts import Prompts
from rlhf_ray.data.examples.sft import Examples
from rlhf_ray.data.loading import passes
from rlhf_ray.data.loading.load import open_stream
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.errors import DataError, RowError, RunError
from rlhf_ray.types import Prompt, SftExample

NUM_ROWS = 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_CHUNK_ROWS", 4)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A folder of two files; one row in ten is empty, another too long."""
    rows: list[dict[str, Any]] = [{"text": f"row {n}"} for n in range(NUM_ROWS)]
    rows[7::10] = [{"text": ""}] * len(rows[7::10])
    rows[8::10] = [{"text": "long" * 30}] * len(rows[8::10])
    for name, part in (("a", rows[:30]), ("b", rows[30:])):
        (tmp_path / "rows").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (tmp_path / f"rows/{name}.jsonl").write_text(lines)
    return str(tmp_path / "rows")


def stream(path: str, tokenizer: Any, *, seed: int = 0, **settings: Any) -> RowStream[SftExample]:
    given = {"streaming": True, "shuffle_buffer": 12, "over_length": "drop", **settings}
    named = {} if "sources" in given else {"path": path}
    data = DataConfig.model_validate({**named, **given})
    return open_stream(data, Examples.of(data, tokenizer, max_length=32), seed=seed)


def ids(rows: list[SftExample]) -> list[str]:
    return [row.example_id for row in rows]


def kept(path: str, tokenizer: Any) -> list[str]:
    data = DataConfig(path=path, over_length="drop")
    return ids(list(load_sft(data, tokenizer, max_length=32).rows))


def test_a_pass_gives_the_examples_of_data_at_hand_each_once(
    path: str, chat_tokenizer: Any
) -> None:
    expected = kept(path, chat_tokenizer)
    in_order = stream(path, chat_tokenizer, shuffle=False)
    assert ids(in_order.take(len(expected) + 3)) == expected + expected[:3]
    assert in_order.epochs == 1.0 and in_order.position == len(expected) + 3
    shuffled = stream(path, chat_tokenizer)
    passes = [ids(shuffled.take(len(expected))) for _ in range(3)]
    assert all(Counter(each) == Counter(expected) for each in passes)
    assert expected != passes[0] != passes[1] != passes[2]
    assert stream(path, chat_tokenizer, seed=1).take(9) != shuffled.take(9)


def test_examples_move_no_further_than_their_block(path: str, chat_tokenizer: Any) -> None:
    expected = kept(path, chat_tokenizer)
    taken = ids(stream(path, chat_tokenizer).take(len(expected)))
    moved = [abs(taken.index(name) - at) for at, name in enumerate(expected)]
    assert 3 < max(moved) < 12 + 4


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_resumed_stream_goes_on_exactly_wherever_it_was_left(
    path: str, chat_tokenizer: Any, shuffle: bool, mixed: bool
) -> None:
    settings: dict[str, Any] = {"shuffle": shuffle}
    if mixed:
        settings["sources"] = [
            {"path": path, "probability": 3.0, "skip": 1},
            {"path": f"{path}/b.jsonl", "limit": 13},
        ]

    def opened() -> RowStream[SftExample]:
        return stream(path, chat_tokenizer, **settings)

    undisturbed = ids(opened().take(130))
    for position in [*range(0, 45), 79, 80, 81, 101]:
        first = opened()
        assert ids(first.take(position)) == undisturbed[:position]
        resumed = opened()
        resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert resumed.position == position
        assert ids(resumed.take(12)) == undisturbed[position : position + 12]


def test_sources_are_drawn_by_their_probabilities(path: str, chat_tokenizer: Any) -> None:
    sources = [{"path": f"{path}/a.jsonl", "probability": 3.0}, {"path": f"{path}/b.jsonl"}]
    taken = ids(stream(path, chat_tokenizer, sources=sources).take(400))
    assert {name.split(":")[0] for name in taken} == {"0/a", "1/b"}
    assert 260 < sum(name.startswith("0/") for name in taken) < 340


def test_what_became_of_the_rows_is_in_the_log(
    path: str, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        stream(path, chat_tokenizer).take(41)
    [told] = [record.getMessage() for record in caplog.records if "pass" in record.getMessage()]
    assert "50 read in this pass, 40 kept; left out: 5 empty text (first " in told
    assert "a.jsonl:8), 5 too long (first " in told


def test_processes_give_the_same_stream(path: str, chat_tokenizer: Any) -> None:
    one, two = (stream(path, chat_tokenizer, workers=workers) for workers in (1, 2))
    assert ids(one.take(60)) == ids(two.take(60))


def test_only_what_is_needed_is_read(
    tmp_path: Path, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"row {n}"} for n in range(100)] + [{"text": 5}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taken = stream(str(tmp_path / "a.jsonl"), chat_tokenizer)
    taken.take(70)
    with pytest.raises(RowError, match=r"a\.jsonl:101: wrong type"):
        taken.take(31)


def test_a_stream_of_other_data_or_order_is_not_resumed(path: str, chat_tokenizer: Any) -> None:
    state = stream(path, chat_tokenizer).state_dict()
    for other, name in (
        (stream(path, chat_tokenizer, seed=1), "seed"),
        (stream(path, chat_tokenizer, shuffle=False), "shuffle"),
        (stream(path, chat_tokenizer, shuffle_buffer=13), "block_rows"),
        (stream(path, chat_tokenizer, limit=9), "digest"),
        (stream(path, chat_tokenizer, separator="\n\n"), "digest"),
        (stream(path, chat_tokenizer, on_bad_row="skip"), "digest"),
    ):
        with pytest.raises(ValueError, match=f"the stream to resume has {name} "):
            other.load_state_dict(state)
    with (Path(path) / "b.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(ValueError, match="has digest"):
        stream(path, chat_tokenizer).load_state_dict(state)


def test_a_pass_without_an_example_ends(tmp_path: Path, chat_tokenizer: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 9)
    with pytest.raises(DataError, match="no row of 9 is left; left out: 9 empty text"):
        stream(str(tmp_path / "a.jsonl"), chat_tokenizer).take(1)


def test_looking_at_the_first_rows_takes_none(path: str, chat_tokenizer: Any) -> None:
    rows = stream(path, chat_tokenizer)
    expected = kept(path, chat_tokenizer)
    rows.take(20)
    state = rows.state_dict()
    assert ids(rows.first(9)) == expected[:9]
    assert rows.state_dict() == state


def test_tokens_without_an_embedding_are_refused(path: str, chat_tokenizer: Any) -> None:
    rows = stream(path, chat_tokenizer)
    rows.refuse_tokens_from(10)
    with pytest.raises(RunError, match=r"row rows:0 holds token \d+, but the model has embeddings"):
        rows.take(1)


def test_rewards_look_at_prompts_as_they_come(
    tmp_path: Path, chat_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "".join(json.dumps({"prompt": f"q{n}", "answer": n}) + "\n" for n in range(20))
    (tmp_path / "p.jsonl").write_text(rows)

    def odd(prompts: Any) -> list[str | None]:
        return ["odd" if prompt.columns["answer"] % 2 else None for prompt in prompts]

    def opened(on_bad_row: str) -> RowStream[Prompt]:
        data = DataConfig.model_validate(
            {"path": str(tmp_path / "p.jsonl"), "streaming": True, "on_bad_row": on_bad_row}
        )
        job = Prompts.of(data, chat_tokenizer, max_length=32)
        return open_stream(data, job, seed=0, check=odd)

    assert sorted(row.columns["answer"] for row in opened("skip").take(10)) == [*range(0, 20, 2)]
    assert "10 rewards cannot score it (first p:1: odd)" in caplog.text
    with pytest.raises(DataError, match="p:1: rewards cannot score it: odd"):
        opened("error").take(1)


def test_several_pairs_of_a_row_stay_in_one_block(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": f"q{n}", "answers": ["a", "b", "c"]} for n in range(8)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(tmp_path / "r.jsonl"), streaming=True, shuffle_buffer=5)

    def opened() -> RowStream[Any]:
        return open_stream(data, Pairs.of(data, chat_tokenizer, max_length=32), seed=0)

    whole = ids(opened().take(24))
    assert len(set(whole)) == 24
    for position in range(24):
        resumed, first = opened(), opened()
        first.take(position)
        resumed.load_state_dict(first.state_dict())
        assert ids(resumed.take(24 - position)) == whole[position:]


def test_a_hub_data_set_comes_over_the_network_and_is_passed_over_on_resume(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def load_dataset(*named: Any, **options: Any) -> Any:
        asked.append(options)
        rows = [{"text": f"row {n}"} for n in range(20)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = stream("org/name", chat_tokenizer, shuffle=False, skip=2, limit=9)
    taken = ids(rows.take(14))
    assert taken[:9] == [f"org/name/train:{n}" for n in range(2, 11)] and taken[9:] == taken[:5]
    assert asked[0] == {"split": "train", "streaming": True}
    resumed = stream("org/name", chat_tokenizer, shuffle=False, skip=2, limit=9)
    resumed.load_state_dict(rows.state_dict())
    assert ids(resumed.take(4)) == taken[5:9]


def test_a_hub_that_stops_amid_a_stream_is_one_clear_error(
    chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> Any:
        yield from [{"text": f"row {n}"} for n in range(9)]
        raise ConnectionError("reset by peer")

    def load_dataset(*_: Any, **__: Any) -> Any:
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    taken = stream("org/name", chat_tokenizer, shuffle=False)
    with pytest.raises(RunError, match=r"org/name/train: the hub gave no row 9 \(Conn.*peer\); a"):
        taken.take(10)


@pytest.mark.parametrize("split", ["train[10%:]", "train[-5:]", "train[:50%]+train[:3]"])
def test_a_split_that_takes_the_number_of_rows_is_refused(
    path: str, chat_tokenizer: Any, split: str
) -> None:
    with pytest.raises(DataError, match="a stream has no shares and no end to count from"):
        stream(path, chat_tokenizer, split=split)
    few = stream(path, chat_tokenizer, split="train[:3]", shuffle=False)
    assert ids(few.take(4))[3] == "rows:0"


MODEL = {"model": {"path": "org/model"}}
STREAM = {"path": "org/data", "streaming": True}
HELD_OUT = {"eval": {"data": STREAM}}


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (SftConfig, {"data": STREAM, "epochs": 1.0}, "epochs need the number of rows"),
        (
            SftConfig,
            {"data": {"path": "org/data"}, **HELD_OUT},
            "eval.data.streaming must be false",
        ),
        (DpoConfig, {"data": STREAM, "loss_type": ["kto"]}, "kto takes the answer to another"),
        (DpoConfig, {"data": STREAM, "reference_kind": "precomputed"}, "scores all rows before"),
        (RmConfig, {"data": STREAM, "reference_data": STREAM}, "reference_data.streaming must be"),
        (SftConfig, {"data": {**STREAM, "mixing": "until_first"}}, "a stream has no end"),
        (GrpoConfig, {"data": {"path": "org/data"}, **HELD_OUT}, "eval.data.streaming must be"),
    ],
)
def test_what_needs_all_rows_does_not_go_with_a_stream(kind: Any, values: Any, said: str) -> None:
    role = {"reward": MODEL} if kind is RmConfig else {"policy": MODEL}
    if kind is GrpoConfig:
        role["reward"] = {"functions": [{"path": "m:f"}]}
    with pytest.raises(ValueError, match=said):
        kind.model_validate({**role, **values})
