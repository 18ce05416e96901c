"""The reference's log-probabilities: asked, kept, read back, and never those of other rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_ray.errors import RunError
from rlhf_ray.jobs import referenced as module
from rlhf_ray.jobs.referenced import (
    KeptReference,
    precomputed,
    referenced,
    without_reference,
)
from rlhf_ray.types import LabelledAnswer, Ranking


def tokens(*ids):
    return np.asarray(ids, dtype=np.int32)


def make_rows(count=5):
    pairs = [
        Ranking(
            example_id=f"pairs:{n}",
            prompt_ids_T=tokens(1, n),
            answer_ids_K=(tokens(5, n), tokens(6)),
        )
        for n in range(count)
    ]
    label = LabelledAnswer(
        example_id="labels:0",
        prompt_ids_T=tokens(1),
        answer_ids_K=(tokens(7), tokens(8, 9)),
        desirable=False,
    )
    return [*pairs, label]


class Asked:
    """A reference whose answers tell rows and answers apart; counts the rows it was asked for."""

    def __init__(self):
        self.num_rows = []

    async def __call__(self, rows):
        self.num_rows.append(len(rows))
        return [tuple(-float(answer.sum()) - 0.1 for answer in row.answer_ids_K) for row in rows]


async def test_each_row_gets_its_own_answers(tmp_path):
    rows, asked = make_rows(), Asked()
    found = await referenced(rows, asked)
    assert [f.row for f in found] == rows
    assert found[2].reference_logps_K == (-7.1, -6.1)
    assert found[-1].reference_logps_K == (-7.1, -17.1)
    assert found[2].num_tokens == 2 * 2 + 3
    assert [f.reference_logps_K for f in await without_reference(rows)] == [(0.0, 0.0)] * 6


async def test_all_rows_are_asked_for_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_A_CALL", 4)
    rows, asked = make_rows(), Asked()
    first = await (await precomputed([rows[:1], rows[1:]], asked, tmp_path, model="m"))(rows)
    again = await (await precomputed([rows[:1], rows[1:]], asked, tmp_path, model="m"))(rows)
    assert asked.num_rows == [1, 4, 1]
    expected = [f.reference_logps_K for f in await referenced(rows, Asked())]
    assert [f.reference_logps_K for f in first] == expected
    assert [f.reference_logps_K for f in again] == expected


@pytest.mark.parametrize("change", ["model", "row", "border"])
async def test_what_was_kept_for_others_is_not_taken(tmp_path, change):
    rows, asked = make_rows(), Asked()
    await precomputed([rows], asked, tmp_path, model="m")
    if change == "row":
        rows[1] = make_rows(9)[7]
    if change == "border":  # the same tokens, cut elsewhere
        rows[0] = Ranking(
            example_id="pairs:0",
            prompt_ids_T=tokens(1),
            answer_ids_K=(tokens(0, 5, 0), tokens(6)),
        )
    await precomputed([rows], asked, tmp_path, model="other" if change == "model" else "m")
    assert asked.num_rows == [6, 6]


async def test_a_torn_file_is_scored_again(tmp_path, caplog):
    rows, asked = make_rows(), Asked()
    first = await precomputed([rows], asked, tmp_path, model="m")
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    again = await precomputed([rows], asked, tmp_path, model="m")
    assert asked.num_rows == [6, 6]
    assert await again(rows) == await first(rows)
    assert "scoring again" in caplog.text


class Drifting(Asked):
    """What it says of a row changes a little with every call, as rounding does."""

    async def __call__(self, rows):
        said = await super().__call__(rows)
        return [tuple(logp + 1e-9 * len(self.num_rows) for logp in logps) for logps in said]


async def test_rows_that_come_again_are_not_asked_for_again(tmp_path):
    rows, asked = make_rows(9), Drifting()
    kept = KeptReference(asked, tmp_path, model="m")
    first = [*await kept(rows[:4]), *await kept(rows[4:6])]
    again = await kept([*rows[:6], rows[8]])
    assert asked.num_rows == [4, 2, 1]
    assert again[:6] == first
    resumed = KeptReference(asked, tmp_path, model="m")
    assert await resumed([*rows[:6], rows[8]]) == again
    assert asked.num_rows == [4, 2, 1]
    await KeptReference(asked, tmp_path, model="other")(rows[:2])
    assert asked.num_rows == [4, 2, 1, 2]


async def test_a_part_of_a_row_that_a_killed_run_left_is_asked_for_again(tmp_path):
    rows, asked = make_rows(), Asked()
    first = await KeptReference(asked, tmp_path, model="m")(rows)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    for _ in range(2):
        assert await KeptReference(asked, tmp_path, model="m")(rows) == first
    assert asked.num_rows == [6, 1]


async def test_what_is_not_finite_is_not_kept(tmp_path):
    async def broken(rows):
        return [(math.nan, 0.0)] * len(rows)

    with pytest.raises(RunError, match="6 log-probabilities that are not finite"):
        await KeptReference(broken, tmp_path, model="m")(make_rows())
    await KeptReference(Asked(), tmp_path, model="m")(make_rows())
