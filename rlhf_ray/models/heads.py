"""The modules that roles run: a language model that scores tokens, and a critic.

Both take a `TokenBatch` and speak of its scored tokens only; neither ever holds [B, T, V] logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from rlhf_ray.algorithms.logprobs import TokenScores
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.batch import TokenBatch, build_batch, moved
from rlhf_ray.models.decoder import base_of, decode, decoder_of
from rlhf_ray.models.linear import in_float32, new_head
from rlhf_ray.models.logits import LogprobsHead
from rlhf_ray.models.modes import CHECKED_PROMPT, CheckedModel
from rlhf_ray.models.packed import take_rows
from rlhf_ray.types import IntArray


class TokenScorer(CheckedModel):
    """A causal language model that gives the log-probabilities of a batch's scored tokens.

    Attributes:
        lm: The model, perhaps with adapters.
        temperature: Divides the logits.
        chunk_tokens: Logits exist for at most this many tokens at a time.
        entropy_gradient: Whether the entropy is trained on; without, it costs no graph.
        with_router_loss: Whether to give the load-balancing loss of a model with experts.
    """

    outcome = "log-probabilities (nats)"

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        temperature: float,
        chunk_tokens: int,
        entropy_gradient: bool = False,
        with_router_loss: bool = False,
    ) -> None:
        """Wrap `lm`."""
        super().__init__()
        self.lm = lm
        self.head = LogprobsHead(lm)
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.entropy_gradient = entropy_gradient
        self.with_router_loss = with_router_loss

    def forward(
        self,
        batch: TokenBatch,
        *,
        with_entropy: bool = False,
        with_top: bool = False,
        temperature: float | None = None,
    ) -> TokenScores:
        """Score.

        Args:
            batch: What to score.
            with_entropy: Also the entropy (nats) of the distribution each token was drawn from.
            with_top: Also the likeliest token in each place.
            temperature: In place of the model's own.
        """
        decoded = decode(
            decoder_of(self.lm), batch, self.mode, with_router_loss=self.with_router_loss
        )
        logprobs_T, entropy_T, top_T = self.head(
            take_rows(decoded.hidden_ND, batch.predict),
            batch.targets_T,
            temperature=self.temperature if temperature is None else temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
            entropy_gradient=self.entropy_gradient,
            with_top=with_top,
        )
        return TokenScores(
            logprobs_T=logprobs_T,
            entropy_T=entropy_T,
            top_T=top_T,
            router_loss=decoded.router_loss,
        )

    def transformer(self) -> Any:
        """The model whose attention is chosen."""
        return base_of(self.lm)

    def outcomes(self, sequences_B: Sequence[IntArray], *, far: int = 0) -> list[torch.Tensor]:
        """Log-probabilities of each sequence's tokens but the first."""
        batch = _all_tokens(sequences_B, self, far)
        return list(self(batch, temperature=1.0).logprobs_T.split(_lens(sequences_B)))

    def own_outcome(self, input_ids_1T: torch.Tensor) -> torch.Tensor:
        """The same of one sequence, by the model's own `forward`."""
        logits_TV = base_of(self.lm)(input_ids=input_ids_1T, use_cache=False).logits[0, :-1]
        logprobs_TV: torch.Tensor = logits_TV.float().log_softmax(-1)
        return logprobs_TV.gather(-1, input_ids_1T[0, 1:, None]).squeeze(-1)


class ValueModel(CheckedModel):
    """A decoder with a scalar head: the expected return before each scored token.

    The head is new, or that of the reward model whose decoder is taken; it works in float32.
    """

    outcome = "values"

    def __init__(self, lm: PreTrainedModel, *, seed: int) -> None:
        """Take the decoder of `lm`; its language-model head is dropped.

        Raises:
            ConfigError: Nothing says how wide its hidden states are.
        """
        super().__init__()
        base = base_of(lm)
        self.decoder = decoder_of(lm)
        trained = next(p for p in self.decoder.parameters() if p.requires_grad)
        self.value_head = in_float32(
            getattr(base, "score", None)
            or new_head(_hidden_size(base), like=trained, bias=True, seed=seed)
        )

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Values, float32 [T]."""
        hidden_TD = take_rows(decode(self.decoder, batch, self.mode).hidden_ND, batch.predict)
        values: torch.Tensor = self.value_head(hidden_TD)
        return values.squeeze(-1)

    def transformer(self) -> Any:
        """The model whose attention is chosen."""
        return self.decoder

    def outcomes(self, sequences_B: Sequence[IntArray], *, far: int = 0) -> list[torch.Tensor]:
        """Values before each sequence's tokens but the first."""
        return list(self(_all_tokens(sequences_B, self, far)).split(_lens(sequences_B)))

    def own_outcome(self, input_ids_1T: torch.Tensor) -> torch.Tensor:
        """The same of one sequence, by the decoder's own `forward`."""
        output = self.decoder(input_ids=input_ids_1T, use_cache=False)
        values_T: torch.Tensor = self.value_head(output.last_hidden_state[0, :-1]).squeeze(-1)
        return values_T


def _hidden_size(base: Any) -> int:
    size = getattr(base.config.get_text_config(), "hidden_size", None)
    if not isinstance(size, int):
        raise ConfigError(f"{type(base).__name__} can be no critic: it names no hidden_size")
    return size


def _all_tokens(sequences_B: Sequence[IntArray], model: CheckedModel, far: int) -> TokenBatch:
    batch = build_batch(
        sequences_B,
        [np.arange(1, len(sequence)) for sequence in sequences_B],
        padded=model.padded,
        device=model.device,
        prompt_lens_B=[CHECKED_PROMPT] * len(sequences_B) if model.mode.shares_prompts else None,
    )
    return moved(batch, far)


def _lens(sequences_B: Sequence[IntArray]) -> list[int]:
    return [len(sequence) - 1 for sequence in sequences_B]
