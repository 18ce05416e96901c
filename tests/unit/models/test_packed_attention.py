"""`packed_sdpa` attends within each sequence, as attention over each sequence alone does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.models.attention import masked_sdpa, packed_sdpa
from rlhf_ray.models.batch import build_batch

HEADS, KV_HEADS, SIZE = 4, 2, 8


def attention_alone(query, key, value, *, scaling, window):
    """One sequence, float64, written out: [heads, T, size] each."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    i = torch.arange(query.shape[1])
    distance = i[:, None] - i[None, :]
    seen = (distance >= 0) & (distance < (window or math.inf))
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ value


def packed(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    states = [
        torch.randn(1, heads, total, SIZE, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    batch = build_batch(
        [np.ones(n, dtype=np.int32) for n in lengths],
        [np.zeros(0, dtype=np.int64)] * len(lengths),
        padded=False,
        device=torch.device("cpu"),
    )
    return states, batch.packing


@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=5),
    window=st.sampled_from([None, 1, 3, 64]),
    scaling=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_each_sequence_is_attended_to_alone(lengths, window, scaling, seed):
    (query, key, value), packing = packed(lengths, seed)
    output, weights = packed_sdpa(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=scaling,
        sliding_window=window,
        packing=packing,
    )
    assert weights is None
    assert output.shape == (1, sum(lengths), HEADS, SIZE)
    parts = [x.split(lengths, dim=2) for x in (query, key, value)]
    alone = [
        attention_alone(
            *(x[0] for x in sequence), scaling=scaling or SIZE**-0.5, window=window
        ).transpose(0, 1)
        for sequence in zip(*parts, strict=True)
    ]
    torch.testing.assert_close(output[0], torch.cat(alone), atol=1e-12, rtol=0)


def test_what_changes_scores_otherwise_is_refused():
    (query, key, value), packing = packed([3], 0)
    with pytest.raises(ValueError, match="takes no attention mask"):
        packed_sdpa(torch.nn.Identity(), query, key, value, torch.ones(3, 3), packing=packing)
    for function in (packed_sdpa, masked_sdpa):
        for keyword in ({"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"position_bias": query}):
            with pytest.raises(ValueError, match=f"knows nothing of {next(iter(keyword))}"):
                function(torch.nn.Identity(), query, key, value, None, **keyword)
