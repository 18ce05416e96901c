"""Metrics merge over micro-batches and ranks to what the whole step would have given."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import Metric, across_ranks, merge, values


def is_first(x):
    """Half of the numbers, whichever test they come from."""
    return x * 8.0 % 2.0 < 1.0


def metrics_of(x: np.ndarray, mask: np.ndarray) -> dict[str, Metric]:
    x_T, mask_T = torch.tensor(x), torch.tensor(mask, dtype=torch.bool)
    return {
        "mean": metric_sums.mean_of(x_T, mask_T),
        "difference": metric_sums.difference_of_means(x_T[mask_T], is_first(x_T[mask_T])),
        "largest": metric_sums.max_of(x_T, mask_T),
        "ess": metric_sums.effective_sample_size(x_T.abs() + 0.1, mask_T),
        "ev": metric_sums.explained_variance(0.5 * x_T + 1.0, x_T, mask_T),
    }


def expected_of(x: np.ndarray) -> dict[str, float]:
    w = np.abs(x) + 0.1
    return {
        "mean": x.mean(),
        "difference": x[is_first(x)].mean() - x[~is_first(x)].mean(),
        "largest": x.max(),
        "ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
        "ev": 1 - np.var(x - (0.5 * x + 1.0)) / np.var(x),
    }


@given(cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 1000))
def test_any_cut_gives_the_metrics_of_the_whole(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # A mean far from 0: the explained variance must survive the difference of its moments.
    x = rng.normal(1000.0, 1.0, 40)
    mask = rng.random(40) < 0.6
    mask[:2] = True
    borders = [0, *sorted(cuts), 40]
    parts = [metrics_of(x[a:b], mask[a:b]) for a, b in itertools.pairwise(borders)]
    assert values(merge(parts)) == pytest.approx(expected_of(x[mask]), rel=1e-6)


def test_ranks_need_one_collective_a_kind_of_merging() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 1.0, 20)
    everything = np.ones(20, dtype=bool)
    ranks = [metrics_of(x[:5], everything[:5]), metrics_of(x[5:], everything[5:])]
    calls = []

    def collective(combine):
        def run(vector: torch.Tensor) -> torch.Tensor:
            calls.append(len(vector))
            both = []
            for rank in ranks:  # what the other rank's vector is, by the same packing
                captured = []
                grab = lambda v, captured=captured: captured.append(v) or v  # noqa: E731
                across_ranks(rank, sum_ranks=grab, max_ranks=grab)
                both.append(next(v for v in captured if len(v) == len(vector)))
            return combine(*both)

        return run

    merged = across_ranks(
        ranks[0], sum_ranks=collective(torch.add), max_ranks=collective(torch.maximum)
    )
    assert calls == [2 + 4 + 3 + 5, 1]
    assert values(merged) == pytest.approx(expected_of(x), rel=1e-9)


def test_nothing_measured_is_nothing_reported() -> None:
    assert values(metrics_of(np.zeros(3), np.zeros(3, dtype=bool))) == {}


def test_returns_that_do_not_vary_have_no_explained_variance() -> None:
    for constant in (0.0, 0.1, 1 / 3, 1000.1, -7e8):
        assert "ev" not in values(metrics_of(np.full(7, constant), np.ones(7, dtype=bool)))


def test_weights_that_are_all_zero_have_no_effective_sample() -> None:
    metric = metric_sums.effective_sample_size(torch.zeros(4), torch.ones(4, dtype=torch.bool))
    assert values({"ess": metric}) == {"ess": 0.0}


def test_a_name_that_a_part_lacks_is_merged_from_the_others() -> None:
    mask = torch.ones(2, dtype=torch.bool)
    a = {"x": metric_sums.mean_of(torch.tensor([1.0, 2.0]), mask)}
    b = {**a, "y": metric_sums.max_of(torch.tensor([3.0, -1.0]), mask)}
    assert values(merge([a, b])) == {"x": 1.5, "y": 3.0}


def test_metrics_hold_no_graph_and_do_not_hide_nan() -> None:
    x = torch.tensor([1.0, math.nan], requires_grad=True)
    metric = metric_sums.mean_of(x, torch.ones(2, dtype=torch.bool))
    assert not metric.sums.requires_grad and metric.sums.dtype == torch.float64
    assert math.isnan(values({"x": metric})["x"])
