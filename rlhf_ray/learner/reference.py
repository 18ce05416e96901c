"""The frozen reference on one rank; ZeRO-3 spreads it over ranks where one GPU cannot hold it."""

from __future__ import annotations

from collections.abc import Sequence

import deepspeed
import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.learner.engine import deepspeed_config
from rlhf_ray.learner.loading import declare_borrowed, zero3_loading
from rlhf_ray.learner.residency import Residency
from rlhf_ray.learner.scoring import score_answers, score_rollouts
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.specs import ReferenceSpec
from rlhf_ray.types import LabelledAnswer, Ranking, Rollout


class FrozenReference:
    """Scores and never changes.

    Attributes:
        residency: Where the model is.
    """

    def __init__(self, spec: ReferenceSpec, *, device: torch.device) -> None:
        """Load the model."""
        self.spec, self.device = spec, device
        config = spec.reference
        with zero3_loading(config.zero, config.model, device):
            lm = load_causal_lm(config.model, device=device)
        self.model = TokenScorer(
            lm, temperature=spec.temperature, chunk_tokens=config.logits_chunk_tokens
        )
        self.module: torch.nn.Module = self.model.eval()
        if config.zero.stage == 3:
            declare_borrowed(self.model)
            bf16 = next(lm.parameters()).dtype is torch.bfloat16
            settings = deepspeed_config(config.zero, bf16=bf16, max_grad_norm=0.0)
            self.module, *_ = deepspeed.initialize(
                model=self.module, config=settings, dist_init_required=False
            )
        settle(self.model, config, device)
        self.residency = Residency(self, device, deepspeed=self._deepspeed)

    @property
    def _deepspeed(self) -> deepspeed.DeepSpeedEngine | None:
        return self.module if isinstance(self.module, deepspeed.DeepSpeedEngine) else None

    def close(self) -> None:
        """Release DeepSpeed's hooks, where it holds the model."""
        if self._deepspeed is not None:
            self._deepspeed.destroy()

    def logprobs(
        self, rollouts: Sequence[Rollout], plan: RankedMicroBatches
    ) -> list[npt.NDArray[np.float32]]:
        """Log-probabilities of this rank's rows, in the order in which the plan names them."""
        with torch.no_grad():
            return score_rollouts(self._score, rollouts, plan, self.spec.reference, self.model)

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """Sum of the log-probabilities (nats) of each answer's tokens, of this rank's rows.

        They come in the order in which the plan names the rows.
        """
        with torch.no_grad():
            return score_answers(self._score, rows, plan, self.spec.reference, self.model)

    def _score(self, batch: TokenBatch) -> torch.Tensor:
        logprobs_T: torch.Tensor = self.module(batch).logprobs_T
        return logprobs_T
