"""The reference's log-probabilities: asked, kept, read back, and never those of other rows."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_ray.jobs import referenced as module
from rlhf_ray.jobs.referenced import precomputed, referenced, without_reference
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
