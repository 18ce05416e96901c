"""Random ragged batches, and one calling convention for every registered loss term."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES, PolicyLossInputs
from rlhf_ray.algorithms.reduction import Reduction, TokenLoss
from rlhf_ray.algorithms.regularizers import LOSS_TERMS, LossTermInputs
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES, ValueLossInputs
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.algorithm_table import ReductionKind

LOSS_PARAMS = AlgorithmConfig(
    advantage="gae", clip_low=0.2, clip_high=0.28, dual_clip=3.0, value_clip=0.3
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Every field that any loss term reads; float fields first, structure last."""

    logprobs_T: Tensor
    old_logprobs_T: Tensor
    reference_logprobs_T: Tensor
    advantages_T: Tensor
    values_T: Tensor
    old_values_T: Tensor
    returns_T: Tensor
    entropy_T: Tensor
    mask_T: Tensor
    segments_T: Tensor
    lens_B: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.logprobs_T, self.values_T, self.entropy_T]


FLOAT_FIELDS = [field.name for field in fields(Batch)][:8]


def make_batch(
    masks: list[list[bool]], seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> Batch:
    """A batch whose sequence i has the tokens masks[i]; ratios spread by `scale` nats."""
    rng = np.random.default_rng(seed)
    mask = [own for sequence in masks for own in sequence]
    n = len(mask)
    logprobs = -rng.exponential(1.0, n)
    values = rng.normal(0.0, 1.0, n)
    # One advantage a sequence, of either sign, as the group methods give it.
    advantage_B = rng.normal(0.0, 1.0, len(masks))
    numbers = {
        "logprobs_T": logprobs,
        "old_logprobs_T": logprobs + rng.normal(0.0, 0.5 * scale, n),
        "reference_logprobs_T": logprobs + rng.normal(0.0, 0.5 * scale, n),
        "advantages_T": np.repeat(advantage_B, [len(s) for s in masks]),
        "values_T": values,
        "old_values_T": values + rng.normal(0.0, 0.5, n),
        "returns_T": values + rng.normal(0.0, 1.0, n),
        "entropy_T": rng.exponential(1.0, n),
    }
    floats = {name: torch.tensor(x, dtype=dtype) for name, x in numbers.items()}
    return Batch(
        **floats,
        mask_T=torch.tensor(mask, dtype=torch.bool),
        segments_T=torch.tensor([i for i, s in enumerate(masks) for _ in s], dtype=torch.int64),
        lens_B=torch.tensor([sum(s) for s in masks], dtype=torch.int64),
    )


def random_masks(seed: int, num_sequences: int = 7) -> list[list[bool]]:
    """Sequences of 1 to 9 tokens with holes, and one that has no own token at all."""
    rng = np.random.default_rng(seed)
    masks = [list(rng.random(rng.integers(1, 10)) < 0.7) for _ in range(num_sequences)]
    masks[2] = [False, False]
    masks[3] = [True, False, False, True, True]
    return [[bool(own) for own in sequence] for sequence in masks]


def with_leaves(batch: Batch) -> Batch:
    """The same batch with fresh leaves that collect gradients."""
    return replace(
        batch,
        logprobs_T=batch.logprobs_T.clone().requires_grad_(),
        values_T=batch.values_T.clone().requires_grad_(),
        entropy_T=batch.entropy_T.clone().requires_grad_(),
    )


LossCase = Callable[[Batch], TokenLoss]


def _policy_case(name: str, params: AlgorithmConfig) -> LossCase:
    def case(b: Batch) -> TokenLoss:
        inputs = PolicyLossInputs(
            logprobs_T=b.logprobs_T,
            old_logprobs_T=b.old_logprobs_T,
            advantages_T=b.advantages_T,
            mask_T=b.mask_T,
            segments_T=b.segments_T,
            num_sequences=len(b.lens_B),
        )
        return POLICY_LOSSES[name](inputs, params)

    return case


def _value_case(name: str) -> LossCase:
    def case(b: Batch) -> TokenLoss:
        inputs = ValueLossInputs(
            values_T=b.values_T,
            old_values_T=b.old_values_T,
            returns_T=b.returns_T,
            mask_T=b.mask_T,
        )
        return VALUE_LOSSES[name](inputs, LOSS_PARAMS)

    return case


def _term_case(name: str) -> LossCase:
    def case(b: Batch) -> TokenLoss:
        inputs = LossTermInputs(
            mask_T=b.mask_T,
            logprobs_T=b.logprobs_T,
            reference_logprobs_T=b.reference_logprobs_T,
            old_logprobs_T=b.old_logprobs_T,
            entropy_T=b.entropy_T,
        )
        return LOSS_TERMS[name](inputs)

    return case


def policy_case(name: str, **changes: Any) -> LossCase:
    return _policy_case(
        name, AlgorithmConfig.model_validate({**LOSS_PARAMS.model_dump(), **changes})
    )


LOSS_CASES: dict[str, LossCase] = {
    **{f"policy/{name}": policy_case(name) for name in POLICY_LOSSES},
    **{f"value/{name}": _value_case(name) for name in VALUE_LOSSES},
    **{f"term/{name}": _term_case(name) for name in LOSS_TERMS},
}


def reduction_of(
    kind: ReductionKind, sequence_lens_B: list[int], *, constant_length: int | None = None
) -> Reduction:
    """As the plan of an optimiser step counts."""
    return Reduction(
        kind=kind,
        num_tokens=sum(sequence_lens_B),
        num_sequences=sum(length > 0 for length in sequence_lens_B),
        constant_length=constant_length,
    )
