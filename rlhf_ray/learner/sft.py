"""Supervised fine-tuning on one rank: the mean negative log-likelihood of the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from rlhf_ray.algorithms.metric_sums import Metrics, mean_of
from rlhf_ray.algorithms.reduction import Reduction, reduction_totals
from rlhf_ray.data.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import TrainingEngine
from rlhf_ray.learner.loading import zero3_loading
from rlhf_ray.learner.update import UpdateSettings, num_chunks_of_pass, run_update
from rlhf_ray.models.batch import build_batch
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.specs import SftSpec
from rlhf_ray.types import SftExample


class SftLearner(Learner):
    """Holds one rank's share of the model."""

    def __init__(self, spec: SftSpec, *, device: torch.device) -> None:
        """Load the model and hand it to DeepSpeed."""
        torch.manual_seed(spec.seed)
        self.spec, self.device = spec, device
        with zero3_loading(spec.learner.zero, spec.learner.model, device):
            self.lm = load_causal_lm(spec.learner.model, device=device)
        self.lm.train()
        self.engine = TrainingEngine(
            TokenScorer(self.lm, temperature=1.0, chunk_tokens=spec.learner.logits_chunk_tokens),
            spec.learner,
            total_steps=spec.total_steps,
        )

    def update(self, rows: Sequence[SftExample], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        return run_update(
            self.engine,
            rows,
            [int(row.trained_T.sum()) for row in rows],
            plan,
            self._loss,
            UpdateSettings(
                reduction="token_mean",
                constant_length=1,
                chunk_tokens=self.spec.learner.logits_chunk_tokens,
                replay_folder=self.spec.replay_folder,
            ),
        )

    def _loss(
        self, rows: Sequence[SftExample], reduction: Reduction, num_chunks: int
    ) -> tuple[torch.Tensor, Metrics]:
        scored_B = [np.flatnonzero(row.trained_T) for row in rows]
        batch = build_batch(
            [row.token_ids_T for row in rows],
            scored_B,
            padded=self.spec.learner.padded,
            device=self.device,
        )
        logprobs_T, entropy_T = self.engine(batch, with_entropy=True, num_chunks=num_chunks)
        mask_T = torch.ones_like(batch.targets_T, dtype=torch.bool)
        lens_B = torch.tensor([len(scored) for scored in scored_B] or [0], device=self.device)
        loss = reduction.reduce(-logprobs_T, mask_T, batch.segments_T, lens_B)
        assert entropy_T is not None
        return loss, {"entropy": mean_of(entropy_T, mask_T)}

    def evaluate(self, rows: Sequence[SftExample], plan: RankedMicroBatches) -> float:
        """Mean loss of the trained tokens of all rows, in nats; the same on every rank."""
        scored_B = [int(row.trained_T.sum()) for row in rows]
        reduction = Reduction(
            kind="token_mean", totals=reduction_totals(scored_B, constant_length=None)
        )
        chunk_tokens = self.spec.learner.logits_chunk_tokens
        total = torch.zeros((), device=self.device)
        self.engine.engine.eval()
        with torch.no_grad():
            for index, picked in enumerate(plan[dist.get_rank()]):
                num_chunks = num_chunks_of_pass(plan, index, scored_B, chunk_tokens)
                loss, _ = self._loss([rows[row] for row in picked], reduction, num_chunks)
                total += loss
        self.engine.engine.train()
        dist.all_reduce(total)
        return float(total)
