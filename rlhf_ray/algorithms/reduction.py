"""Losses of tokens, and the one place where a loss is divided.

Numerator and denominator belong to one object. The denominator is counted over the whole optimiser
step before its first micro-batch runs, so the losses of micro-batches and ranks *add up* to that of
the step however the step is cut. (Dividing by a micro-batch's own count makes the gradient depend
on the cut: https://unsloth.ai/blog/gradient.)
"""

from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.ragged import masked
from rlhf_ray.config.algorithm_table import ReductionKind


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """A loss term before `Reduction` makes a scalar of it.

    Attributes:
        loss_T: float[T], to be minimised; 0 in slots that are masked out.
        metrics: Detached sums; see `metric_sums`.
    """

    loss_T: Tensor
    metrics: MetricSums


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """Turns token losses into the scalar to differentiate.

    Kinds:
        token_mean: mean over all action tokens of the step (DAPO, https://arxiv.org/abs/2503.14476,
            eq. 12). Long responses weigh more.
        sequence_mean: mean over sequences of each one's mean over its action tokens (GRPO,
            https://arxiv.org/abs/2402.03300, eq. 3).
        constant: sum divided by num_sequences · constant_length (Dr. GRPO,
            https://arxiv.org/abs/2503.20783, section 3.2). No bias towards any length.

    Sequences without action tokens add 0 and are not counted. An engine that *averages* gradients
    over data parallelism needs the loss times its size.

    Attributes:
        kind: See above.
        num_tokens: Action tokens of one optimiser step, over all its ranks and micro-batches.
        num_sequences: Those of the step that have at least one action token.
        constant_length: Tokens by which kind `constant` divides each sequence (the largest
            response length); None for the other kinds.

    Raises:
        ValueError: Kind `constant` without a positive `constant_length`.
    """

    kind: ReductionKind
    num_tokens: int
    num_sequences: int
    constant_length: int | None

    def __post_init__(self) -> None:
        """Checks that `constant` has its length."""
        if self.kind == "constant" and not (self.constant_length or 0) > 0:
            raise ValueError(
                "constant_length must be positive for reduction 'constant', "
                f"got {self.constant_length}"
            )

    def reduce(
        self, loss_T: Tensor, mask_T: Tensor, segments_T: Tensor, sequence_lens_B: Tensor
    ) -> Tensor:
        """Reduces one micro-batch to its share of the step's loss.

        Args:
            loss_T: float[T].
            mask_T: bool[T].
            segments_T: int64[T].
            sequence_lens_B: int64[B], action tokens of each sequence *in full*: right even if a
                sequence were spread over several micro-batches.

        Returns:
            A scalar that stays connected to `loss_T`: a differentiable 0 for an empty micro-batch.
        """
        return (masked(loss_T, mask_T) * self._weight(loss_T, segments_T, sequence_lens_B)).sum()

    def _weight(
        self, loss_T: Tensor, segments_T: Tensor, sequence_lens_B: Tensor
    ) -> Tensor | float:
        # max(..., 1): a step without action tokens has the loss 0, not 0 / 0.
        num_sequences = max(self.num_sequences, 1)
        if self.kind == "token_mean":
            return 1.0 / max(self.num_tokens, 1)
        if self.kind == "sequence_mean":
            lens_T = sequence_lens_B[segments_T].clamp(min=1).to(loss_T.dtype)
            return 1.0 / (lens_T * num_sequences)
        assert self.constant_length is not None
        return 1.0 / (num_sequences * self.constant_length)
