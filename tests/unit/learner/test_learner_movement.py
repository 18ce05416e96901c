"""That parameters move is seen piece by piece, where they are."""

from __future__ import annotations

import pytest
import torch
from learning import plan_of
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_ray.learner import optim
from rlhf_ray.learner.deepspeed.engine import _master_part

pytestmark = pytest.mark.timeout(900)  # CPUAdam is compiled at its first use on a machine
PIECE = 100
LARGEST_WEIGHT = 61 * 32
SETTINGS = [
    ("float32", {"stage": 0}),
    ("float32", {"stage": 1}),
    ("float32", {"stage": 2}),
    ("float32", {"stage": 3}),
    ("bfloat16", {"stage": 1}),
    ("bfloat16", {"stage": 3}),
    ("bfloat16", {"stage": 2, "offload_optimizer": "cpu"}),
    ("bfloat16", {"stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}),
]


class LargestNew(TorchDispatchMode):
    """Records the bytes of the largest tensor that is not a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("dtype", "zero"), SETTINGS)
def test_no_more_than_a_piece_is_copied(make_policy, rows, monkeypatch, dtype, zero):
    monkeypatch.setattr(optim, "PIECE", PIECE)
    learner = make_policy(model={"dtype": dtype}, zero=zero)
    named = learner.engine._named_trained()
    settings = (named, _master_part, torch.device("cpu"))
    with LargestNew() as largest:
        check = optim.MovementCheck(*settings)
    # Sums of all parameters cross the ranks together.
    limit = 8 * max(PIECE, 2 * len(named))
    assert PIECE < largest.bytes <= limit < 4 * LARGEST_WEIGHT
    learner.update(rows, plan_of(rows, minibatches=1), 0.0)
    with LargestNew() as largest:
        check.after_step(1e-2)
    assert PIECE < largest.bytes <= limit
    assert not check._still, "all have moved"
