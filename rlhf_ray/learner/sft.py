"""Supervised fine-tuning on one rank: the loss of the trained tokens of each example."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.distributed as dist

from rlhf_ray.algorithms.metric_sums import MetricSums, mean_of
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.supervised_losses import SFT_LOSSES
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.learner.base import ExampleLearner
from rlhf_ray.learner.rows import answer_sums, over_ranks, score_rows
from rlhf_ray.models.batch import TokenBatch, build_batch
from rlhf_ray.models.decoder import base_of, vocabulary_of
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.limits import most_tokens
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.types import SftExample

METRICS = ("loss", "nll", "entropy", "token_accuracy")


class SftLearner(ExampleLearner[SftConfig, SftExample]):
    """Holds one rank's share of the model."""

    def _load(self) -> TokenScorer:
        lm = load_causal_lm(self.config.model, device=self.device)
        return TokenScorer(
            lm, temperature=1.0, chunk_tokens=self.config.chunk_tokens(vocabulary_of(lm))
        )

    def _loss(
        self, rows: Sequence[SftExample], reduction: Reduction
    ) -> tuple[torch.Tensor, MetricSums]:
        batch, values = self._values(rows)
        mask_T = torch.ones_like(batch.targets_T, dtype=torch.bool)
        lens_B = answer_sums(mask_T.long(), batch)
        loss = reduction.reduce(values.pop("loss"), mask_T, batch.segments_T, lens_B)
        return loss, {name: mean_of(values_T, mask_T) for name, values_T in values.items()}

    def evaluate(self, rows: Sequence[SftExample], plan: RankedMicroBatches) -> Evaluated:
        """Means over the trained tokens of all rows; an outcome is an example's mean loss."""
        num_trained_B = [row.num_trained_tokens for row in rows]
        sums = score_rows(
            self.engine,
            lambda picked: self._sums([rows[row] for row in picked]),
            plan,
            [row.num_tokens for row in rows],
            self.config,
        )
        table_BK = over_ranks(
            sums,
            plan,
            self.engine.dims,
            num_rows=len(rows),
            width=len(METRICS),
            device=self.device,
        ).cpu()
        lens_B = torch.tensor(num_trained_B, dtype=torch.float64)
        means_K = table_BK.sum(0) / lens_B.sum()
        losses_B = table_BK[:, 0] / lens_B
        return Evaluated(
            metrics=dict(zip(METRICS, means_K.tolist(), strict=True)),
            outcomes_B=[(loss,) for loss in losses_B.tolist()],
        )

    def _sums(self, rows: Sequence[SftExample]) -> list[tuple[float, ...]]:
        """Each row's sums over its trained tokens, in the order of `METRICS`."""
        batch, values = self._values(rows)
        columns = [answer_sums(values[name], batch)[: len(rows)].tolist() for name in METRICS]
        return list(zip(*columns, strict=True))

    def _values(self, rows: Sequence[SftExample]) -> tuple[TokenBatch, dict[str, torch.Tensor]]:
        """The rows as a batch, and float [T] of each of `METRICS`."""
        batch = build_batch(
            [row.token_ids_T for row in rows],
            [np.flatnonzero(row.trained_T) for row in rows],
            padded=self.model.padded,
            device=self.device,
        )
        scores = self.engine(batch, with_entropy=True, with_top=True)
        return batch, {
            "loss": SFT_LOSSES[self.job.loss_type](scores.logprobs_T),
            "nll": -scores.logprobs_T,
            "entropy": scores.entropy_T,
            "token_accuracy": scores.top_T.eq(batch.targets_T).float(),
        }

    def continuations(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        end_ids: Collection[int],
    ) -> list[list[int]]:
        """What the model writes after each prompt, greedily; all ranks call it alike.

        Each token is a whole pass, without a cache: for a handful of samples to look at.

        Args:
            prompts: Token ids, at least one each.
            max_new_tokens: Most tokens of an answer; it also ends where the context does.
            end_ids: Tokens that end one; they are kept.

        Returns:
            Token ids without the prompts', the same on every rank.
        """
        context = most_tokens(base_of(self.lm).config) or math.inf
        answers: list[list[int]] = [[] for _ in prompts]
        open_rows = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            if not open_rows:
                break
            next_ids = self._next([[*prompts[row], *answers[row]] for row in open_rows])
            for row, token_id in zip(open_rows, next_ids, strict=True):
                answers[row].append(token_id)
            open_rows = [
                row
                for row in open_rows
                if answers[row][-1] not in end_ids
                and len(prompts[row]) + len(answers[row]) < context
            ]
        return answers

    def _next(self, sequences: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest next token of each, as rank 0 has it: ranks that differ would part ways."""
        batch = build_batch(
            [np.array([*sequence, 0], dtype=np.int32) for sequence in sequences],
            [np.array([len(sequence)]) for sequence in sequences],
            padded=self.model.padded,
            device=self.device,
        )
        with self.engine.inference():
            top_B = self.engine(batch, with_top=True).top_T
        dist.broadcast(top_B, 0)
        next_ids: list[int] = top_B.tolist()
        return next_ids
