"""The gradient of a step does not depend on how its sequences are cut, padded or ordered.

Walks every registered loss term under every reduction. Hypothesis draws the sequences, which rank
and micro-batch each goes to, their order, and where garbage is put between their tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
import torch
from alg_batches import (
    FLOAT_FIELDS,
    LOSS_CASES,
    Batch,
    LossCase,
    make_batch,
    reduction_of,
    with_leaves,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import merge, values
from rlhf_ray.config.algorithm_table import ReductionKind

RELATIVE = 1e-5
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One way to run a step: ranks[r][m] lists the sequences of a micro-batch in their order."""

    ranks: list[list[list[int]]]
    garbage_share: float


@st.composite
def steps_and_cuts(draw: st.DrawFn) -> tuple[Batch, Cut]:
    mask = st.lists(st.booleans(), min_size=1, max_size=6)
    masks = draw(st.lists(mask, min_size=1, max_size=7))
    masks.append([True, *draw(mask)])  # a step has at least one own token
    num_ranks = draw(st.integers(1, 3))
    num_micro_batches = draw(st.integers(1, 3))
    ranks: list[list[list[int]]] = [
        [[] for _ in range(num_micro_batches)] for _ in range(num_ranks)
    ]
    for sequence in draw(st.permutations(range(len(masks)))):
        rank = draw(st.integers(0, num_ranks - 1))
        ranks[rank][draw(st.integers(0, num_micro_batches - 1))].append(sequence)
    batch = make_batch(masks, seed=draw(st.integers(0, 2**16)))
    return batch, Cut(ranks=ranks, garbage_share=draw(st.sampled_from([0.0, 0.5, 2.0])))


def cut_out(batch: Batch, sequences: list[int], garbage_share: float, seed: int) -> Batch:
    """The micro-batch of `sequences`, with garbage tokens among and behind their own."""
    rng = np.random.default_rng(seed)
    index: list[int] = []
    segments: list[int] = []
    for new, old in enumerate(sequences):
        tokens = torch.nonzero(batch.segments_T == old).flatten().tolist()
        num_garbage = int(garbage_share * len(tokens))
        for place in rng.integers(0, len(tokens) + 1, num_garbage):
            tokens.insert(int(place), -1)
        index += tokens
        segments += [new] * len(tokens)
    # A padding sequence at the end, all garbage, as in a batch of fixed shape.
    num_padding = int(garbage_share * 2)
    index += [-1] * num_padding
    segments += [len(sequences)] * num_padding
    index_T = torch.tensor(index, dtype=torch.int64)
    is_garbage_T = index_T < 0

    def pick(x_T: Tensor) -> Tensor:
        garbage_T = torch.tensor(rng.choice(GARBAGE, len(index)), dtype=x_T.dtype)
        return torch.where(is_garbage_T, garbage_T, x_T[index_T.clamp(min=0)])

    return replace(
        batch,
        **{name: pick(getattr(batch, name)) for name in FLOAT_FIELDS},
        mask_T=torch.where(is_garbage_T, False, batch.mask_T[index_T.clamp(min=0)]),
        segments_T=torch.tensor(segments, dtype=torch.int64),
        lens_B=torch.cat([batch.lens_B[sequences], torch.zeros(1, dtype=torch.int64)]),
    )


def run_step(
    case: LossCase, batch: Batch, kind: ReductionKind, cut: Cut
) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient (of all leaves, in the order of `batch`) and metrics of a step cut so."""
    batch = with_leaves(batch)
    reduction = reduction_of(kind, batch.lens_B.tolist(), constant_length=8)
    loss = torch.zeros(())
    metrics = []
    for rank, micro_batches in enumerate(cut.ranks):
        for number, sequences in enumerate(micro_batches):
            part = cut_out(batch, sequences, cut.garbage_share, seed=31 * rank + number)
            term = case(part)
            # A data-parallel engine averages over ranks what the learner multiplied with them.
            scalar = len(cut.ranks) * reduction.reduce(
                term.loss_T, part.mask_T, part.segments_T, part.lens_B
            )
            (scalar / len(cut.ranks)).backward()
            loss = loss + scalar.detach() / len(cut.ranks)
            metrics.append(term.metrics)
    gradient = torch.cat(
        [torch.zeros_like(x) if x.grad is None else x.grad for x in batch.leaves()]
    )
    return loss.item(), gradient, values(merge(metrics))


@pytest.mark.parametrize("kind", get_args(ReductionKind))
@pytest.mark.parametrize("name", sorted(LOSS_CASES))
@settings(max_examples=60, derandomize=True)
@given(step_and_cut=steps_and_cuts())
def test_a_step_has_one_gradient(
    name: str, kind: ReductionKind, step_and_cut: tuple[Batch, Cut]
) -> None:
    batch, cut = step_and_cut
    whole = Cut(ranks=[[list(range(len(batch.lens_B)))]], garbage_share=0.0)
    loss, gradient, metrics = run_step(LOSS_CASES[name], batch, kind, whole)
    cut_loss, cut_gradient, cut_metrics = run_step(LOSS_CASES[name], batch, kind, cut)

    assert torch.isfinite(gradient).all()
    assert (cut_gradient - gradient).norm() <= RELATIVE * gradient.norm()
    assert cut_loss == pytest.approx(loss, rel=RELATIVE, abs=1e-6)
    assert cut_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", get_args(ReductionKind))
@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_a_micro_batch_without_tokens_keeps_the_graph(name: str, kind: ReductionKind) -> None:
    batch = make_batch([[True, True], [True]], seed=0)
    reduction = reduction_of(kind, [2, 1], constant_length=8)
    for garbage_share in (0.0, 3.0):
        leaves = with_leaves(batch)
        part = cut_out(leaves, [], garbage_share, seed=0)
        term = LOSS_CASES[name](part)
        loss = reduction.reduce(term.loss_T, part.mask_T, part.segments_T, part.lens_B)
        loss.backward()
        assert loss.item() == 0.0
        assert values(term.metrics) == {}, "nothing was measured, so nothing is reported"
        assert any(x.grad is not None for x in leaves.leaves())
        assert all(x.grad is None or not x.grad.any() for x in leaves.leaves())


@pytest.mark.parametrize("name", sorted(LOSS_CASES))
def test_the_gradient_is_not_zero_by_accident(name: str) -> None:
    """Guards the property above, which two zero gradients would satisfy."""
    masks = [[True, False, True], [True] * 4, [False, True]]
    whole = Cut(ranks=[[[0, 1, 2]]], garbage_share=0.0)
    _, gradient, _ = run_step(LOSS_CASES[name], make_batch(masks, seed=3), "token_mean", whole)
    assert gradient.norm() > 1e-3


def test_a_wrong_denominator_is_caught() -> None:
    """The property has teeth: dividing by each micro-batch's own count fails it."""
    batch = make_batch([[True] * 5, [True]], seed=1)
    case = LOSS_CASES["policy/reinforce"]
    whole = Cut(ranks=[[[0, 1]]], garbage_share=0.0)
    _, gradient, _ = run_step(case, batch, "token_mean", whole)

    leaves = with_leaves(batch)
    for sequence in (0, 1):
        part = cut_out(leaves, [sequence], 0.0, seed=0)
        wrong = reduction_of("token_mean", part.lens_B.tolist())
        loss_T = case(part).loss_T
        (wrong.reduce(loss_T, part.mask_T, part.segments_T, part.lens_B) / 2).backward()
    assert leaves.logprobs_T.grad is not None
    difference = leaves.logprobs_T.grad - gradient[: len(leaves.logprobs_T)]
    assert difference.norm() > 100 * RELATIVE * gradient.norm()
