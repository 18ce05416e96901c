"""Whatever a row holds, it is read or refused in a line, and its neighbours survive it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_rows import ADD, ANSWER, CALL, RESULT, SYSTEM, USER
from loads import load_labelled, load_pairs, load_prompts, load_rankings, load_sft
from published_rows import PAIRS, PUBLISHED

from rlhf_ray.config.data import DataConfig
from rlhf_ray.errors import DataError

ROWS: list[dict[str, Any]] = [
    *(row for rows in PUBLISHED.values() for row in rows),
    *(row for rows in PAIRS.values() for row in rows),
    {"messages": [SYSTEM, USER, CALL, RESULT, ANSWER], "tools": [ADD], "system": "be brief",
     "chat_template_kwargs": {"short": 1}},
    {"messages": [USER, {**ANSWER, "weight": 0, "reasoning_content": "hm"}], "images": []},
    {"prompt": "q", "completion": "a", "truncated": True, "label": True, "system": "s"},
    {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1, "score_chosen": 2,
     "score_rejected": 1, "truncated_chosen": False},
    {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
    {"prompt": '["q"]', "response_a": '["a"]', "response_b": '["b"]', "winner_model_a": 1,
     "winner_model_b": 0, "winner_tie": 0},
    {"instruction": "q", "input": "i", "output": "a", "history": [["a", "b"]]},
    {"text": "t"},
]  # fmt: skip
VALUES: list[Any] = [
    None, "", " ", "x", 0, -1, 1.5, float("nan"), True, 10**30, [], {}, [None], [[]], [{}],
    ["a", 5], {"a": None}, "[]", "{}", "[{}]", "null", '["x"]', '{"role": "user", "content": "z"}',
    '[{"role": "user", "content": "z"}]', "\n" * 50, "<think>", "</think>", "<image>", "true",
    "tie", {"role": "user"}, ANSWER, [ANSWER],
    [{"type": "text", "text": "t"}], "\n\nHuman: x\n\nAssistant: y", [["a", "b"]], "'" * 3,
]  # fmt: skip
KEYS = (
    "role", "content", "system", "tools", "weight", "label", "prompt", "messages", "text", "chosen",
    "answers", "ranks", "scores", "name", "arguments", "tool_calls", "type", "from", "images",
)  # fmt: skip


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything inside of a value, by keys and indices."""
    if above:
        yield above
    inner = value if isinstance(value, dict) else dict(enumerate(value)) if value else {}
    for key, held in inner.items():
        if isinstance(held, dict | list):
            yield from places(held, (*above, key))
        else:
            yield (*above, key)


def mutated(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    row = copy.deepcopy(row)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(places(row))
        if not found:
            break
        *above, key = rng.choice(found)
        holder: Any = row
        for each in above:
            holder = holder[each]
        value = copy.deepcopy(rng.choice(VALUES))
        change = rng.choice(("value", "value", "value", "gone", "list", "text", "more"))
        if change == "value":
            holder[key] = value
        elif change == "gone":
            del holder[key]
        elif change == "list":
            holder[key] = [holder[key]]
        elif change == "text":
            holder[key] = json.dumps(holder[key])
        elif isinstance(holder, dict):
            holder[rng.choice(KEYS)] = value
        else:
            holder.append(value)
    return row


@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_row_is_read_or_refused_in_words(
    tmp_path: Path, chat_tokenizer: Any, seed: int
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "rows.jsonl"
    num_read = 0
    for _ in range(60):
        row = rng.choice(ROWS)
        rows = [row, mutated(row, rng)] if rng.random() < 0.5 else [mutated(row, rng)]
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        config = DataConfig(
            path=str(path),
            chat=rng.random() < 0.2,
            over_length=rng.choice(("auto", "truncate", "drop")),
            on_bad_row=rng.choice(("error", "skip")),
        )
        for load in (load_sft, load_pairs, load_rankings, load_labelled, load_prompts):
            limit = "context_tokens" if load is load_prompts else "max_length"
            try:
                loaded: Any = load(config, chat_tokenizer, **{limit: 200})
            except DataError as error:
                assert "\n" not in str(error)
                assert str(path) in str(error)
                assert len(str(error)) - len(str(path)) * str(error).count(str(path)) < 900
            else:
                report = loaded.report
                assert report.num_read == report.num_kept + report.num_left_out
                num_read += len(list(loaded.rows))
    assert num_read > 60
