"""How a token is drawn on a CPU: by the request's seed and the token's position, and nothing else.

vLLM keeps a generator for each seeded request and asks them one by one; what a request draws is
then a matter of how often it was asked. Here the noise of a token is a hash of (seed, position,
token): that of all requests comes in one call, and a request that is prefilled anew, moved to
another engine or sampled in other company draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def draw_keys(seeds_B: Any, positions_B: Any) -> Any:
    """A number of 64 bits for each pair, as int64 [B]; pairs that differ have unrelated ones.

    It is the stream of SplitMix64 that begins at the seed's own hash, at `position`.

    Args:
        seeds_B: uint64 [B].
        positions_B: Of the token to draw among the response's, uint64 [B].

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    return _mixed(_mixed(seeds_B) + (positions_B + np.uint64(1)) * _GAMMA).view(np.int64)


def _mixed(numbers_B: Any) -> Any:
    numbers_B = (numbers_B ^ (numbers_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers_B = (numbers_B ^ (numbers_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers_B ^ (numbers_B >> np.uint64(31))


def draw(logits_BV: torch.Tensor, seeds_B: Any, positions_B: Any) -> torch.Tensor:
    """A token of each row from the softmax of its logits (float32): int64 [B].

    The token with the largest logit plus Gumbel noise; vLLM's kernel hashes the noise, in float64,
    from the row's key and the token.
    """
    keys_B = torch.from_numpy(draw_keys(seeds_B, positions_B))
    tokens_B: torch.Tensor = torch.ops._C.fused_gumbel_argmax(logits_BV, keys_B)
    return tokens_B


class SeededDraws(nn.Module):
    """In the place of vLLM's `TopKTopPSampler`, which does not know a token's position.

    Attributes:
        positions: Gives those of the running requests' next tokens, uint64 [B].
    """

    def __init__(self, positions: Callable[[], Any]) -> None:
        """Ask for positions anew at each step."""
        super().__init__()
        self.positions = positions

    def forward(
        self,
        logits: torch.Tensor,
        generators: Mapping[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [B] and the log-probabilities of all [B, V].

        Rows without a generator are greedy: what is drawn for them is not used.

        Raises:
            ValueError: `top_k` or `top_p` is asked for, or a draft is sampled.
        """
        positions_B = self.positions()
        if k is not None or p is not None or len(positions_B) != len(logits):
            raise ValueError("engines on a CPU take neither top_k, top_p nor speculative decoding")
        seeds_B = np.zeros(len(logits), dtype=np.uint64)
        for row, generator in generators.items():
            seeds_B[row] = generator.initial_seed()
        return draw(logits, seeds_B, positions_B), logits.log_softmax(dim=-1, dtype=torch.float32)


class SeededSampler(Sampler):
    """vLLM's sampler with `SeededDraws`, and without ranks where they alone are missing."""

    def __init__(self, logprobs_mode: Any, positions: Callable[[], Any]) -> None:
        """As vLLM's, which counts the tokens that are more probable than each that is drawn."""
        super().__init__(logprobs_mode)
        self.topk_topp_sampler = SeededDraws(positions)

    @staticmethod
    def gather_logprobs(
        logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor
    ) -> LogprobsTensors:
        """Of the tokens alone [B, 1]; nobody reads their ranks, which stay 0."""
        if num_logprobs:
            return Sampler.gather_logprobs(logprobs, num_logprobs, token_ids)
        column_B1 = token_ids.unsqueeze(-1)
        return LogprobsTensors(
            column_B1.to(torch.int32),
            logprobs.gather(-1, column_B1),
            torch.zeros_like(token_ids, dtype=torch.int32),
        )
