"""Between micro-batches nothing has the host wait for what a GPU computes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from learning import plan_of, plan_rows
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_ray.packing import plan_update
from rlhf_ray.types import SftExample

BUDGETS = (60, 10_000)


class Waits(TorchDispatchMode):
    """Counts operations whose result, or its size, the host has to know."""

    NAMES = frozenset({
        "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "item",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        picks = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        # Without `output_size` it has to count first.
        repeats = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if name in self.NAMES or picks or repeats:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def examples():
    generator = np.random.default_rng(4)
    lens = generator.integers(6, 24, size=9)
    return [
        SftExample(
            example_id=f"e{number}",
            token_ids_T=generator.integers(3, 61, size=num).astype(np.int32),
            trained_T=np.arange(num) > num // 3,
        )
        for number, num in enumerate(lens)
    ]


def waits_of(update, plan):
    """Of an update, and how many micro-batches it has."""
    with Waits() as waits:
        update(plan)
    return waits.counts, len(plan.minibatches[0].micro_batches_by_rank[0])


def plans_of_rollouts(rows):
    for budget in BUDGETS:
        yield plan_update(
            [row.rollout.num_tokens for row in rows],
            [int(row.rollout.action_mask_T.sum()) for row in rows],
            data_parallel_size=1,
            max_tokens_per_micro_batch=budget,
            num_minibatches=1,
            num_epochs=1,
            seed=5,
            padded=False,
        )


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("role", ["policy", "value"])
def test_of_an_update_on_rollouts(make_policy, make_value, rows, role, stage):
    settings = {"zero": {"stage": stage}}
    if role == "policy":
        terms = {"kl": {"coefficient": 0.1, "where": "loss"}, "entropy_coefficient": 0.01}
        learner, arguments = make_policy(algorithm=terms, **settings), (0.1,)
    else:
        learner, arguments = make_value(**settings), ()
    learner.update(rows, plan_of(rows), *arguments)  # the first ones look whether weights move
    learner.update(rows, plan_of(rows), *arguments)
    many, one = (
        waits_of(lambda plan: learner.update(rows, plan, *arguments), plan)
        for plan in plans_of_rollouts(rows)
    )
    assert many[1] > 3 > one[1]
    assert many[0] == one[0]


@pytest.mark.parametrize("job", ["sft", "rm", "dpo"])
def test_of_an_update_on_examples(make_supervised, rankings, pairs, examples, job):
    rows = {"sft": examples, "rm": rankings, "dpo": pairs}[job]
    learner = make_supervised(job)
    for _ in range(4):
        learner.update(rows, plan_rows(rows))
    many, one = (
        waits_of(lambda plan: learner.update(rows, plan), plan_rows(rows, budget=budget))
        for budget in BUDGETS
    )
    assert many[1] > one[1]
    assert many[0] == one[0]


def test_the_instrument_sees_what_it_should_find():
    with Waits() as waits:
        values = torch.arange(4.0)
        assert float(values[values > 1].sum()) == 5.0
    assert waits.counts["index"] == 1
    assert waits.counts["_local_scalar_dense"] == 1
