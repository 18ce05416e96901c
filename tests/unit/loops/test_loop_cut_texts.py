"""Texts that a reward model saw cut are counted; they all score alike, whatever follows."""

import pytest

from rlhf_ray.loops.report import _parts
from rlhf_ray.metrics.names import check_names, meaning_of
from rlhf_ray.types import Score


@pytest.mark.parametrize(
    ("is_cut_B", "told"),
    [([True, False, False, False], 0.25), ([False], 0.0), ([None, None], None)],
)
def test_their_share_is_a_metric_where_a_model_scores(is_cut_B, told):
    scores = [Score(total=1.0, parts={"model": 1.0}, is_cut=is_cut) for is_cut in is_cut_B]
    metrics = _parts(scores)
    assert metrics.get("reward/truncated_share") == told
    check_names(metrics)
    assert "beginning alone" in meaning_of("reward/truncated_share").text
