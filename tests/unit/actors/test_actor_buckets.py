"""Weights survive the way through buckets, whatever their dtypes, shapes and the bucket's size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights.bucket import ALIGNMENT_BYTES, pack, unpack

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64]
TENSORS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 7), max_size=3)),
    min_size=1,
    max_size=12,
)


@given(kinds=TENSORS, bucket_bytes=st.integers(1, 600))
def test_what_is_packed_is_unpacked(kinds, bucket_bytes):
    generator = torch.Generator().manual_seed(0)
    weights = [
        (f"w{n}", torch.randint(0, 200, shape, generator=generator).to(dtype))
        for n, (dtype, shape) in enumerate(kinds)
    ]
    buckets = list(pack(iter(weights), bucket_bytes=bucket_bytes))
    for bucket in buckets:
        assert len(bucket.names) == 1 or len(bucket.data) <= bucket_bytes
        assert len(bucket.data) % ALIGNMENT_BYTES == 0
    arrived = [pair for bucket in buckets for pair in unpack(bucket)]
    assert [name for name, _ in arrived] == [name for name, _ in weights]
    for (_, ours), (_, theirs) in zip(arrived, weights, strict=True):
        assert ours.dtype is theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_tensor_that_is_valid_only_for_a_moment_is_copied():
    """`named_weights` gathers into a buffer that the next weight overwrites."""

    def weights():
        buffer = torch.zeros(4)
        for n in range(3):
            buffer.fill_(n)
            yield f"w{n}", buffer

    [bucket] = pack(weights(), bucket_bytes=1000)
    assert [float(w[0]) for _, w in unpack(bucket)] == [0, 1, 2]


def test_a_transposed_tensor_arrives_in_its_own_order():
    weight = torch.arange(6.0).reshape(2, 3).T
    [bucket] = pack([("w", weight)], bucket_bytes=1000)
    [(_, arrived)] = unpack(bucket)
    assert torch.equal(arrived, weight)


def test_a_bucket_that_does_not_add_up_is_refused():
    [bucket] = pack([("w", torch.zeros(5))], bucket_bytes=1000)
    with pytest.raises((ValueError, RuntimeError)):
        unpack(replace(bucket, shapes=[[50]]))
    with pytest.raises(ValueError, match="a bucket's shapes ask for 16 bytes, got 32"):
        unpack(replace(bucket, shapes=[[1]]))
