"""The frozen reference on one rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.rows import score_answers, score_rollouts
from rlhf_ray.models.check import settle
from rlhf_ray.models.decoder import vocabulary_of
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.own_rows import OtherRow
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.specs import ReferenceSpec
from rlhf_ray.types import LabelledAnswer, Ranking, Rollout


class FrozenReference:
    """Scores and never changes."""

    def __init__(self, spec: ReferenceSpec, builder: EngineBuilder) -> None:
        """Load the model and hand it to an engine."""
        self.config, self.builder = spec.reference, builder
        with builder.loading():
            lm = load_causal_lm(self.config.model, device=builder.device)
        self.model = TokenScorer(
            lm,
            temperature=spec.temperature,
            chunk_tokens=self.config.chunk_tokens(vocabulary_of(lm)),
        )
        self.engine = builder.freeze(self.model)
        settle(self.model, self.config, builder.device)

    def close(self) -> None:
        """Release the model."""
        self.engine.close()
        self.builder.close()

    def logprobs(
        self, rollouts: Sequence[Rollout | OtherRow], plan: RankedMicroBatches
    ) -> list[npt.NDArray[np.float32]]:
        """Log-probabilities of this rank's rows, in the order in which the plan names them."""
        return score_rollouts(
            self.engine,
            lambda batch: self.engine(batch).logprobs_T,
            rollouts,
            plan,
            self.config,
        )

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """Sum of the log-probabilities (nats) of each answer's tokens, of this rank's rows.

        They come in the order in which the plan names the rows.
        """
        return score_answers(self.engine, rows, plan, self.config)
