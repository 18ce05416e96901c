"""The modules that roles run: a language model that scores tokens, and a critic.

Both take a `TokenBatch` and speak of its scored tokens only; neither ever holds [B, T, V] logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_ray.algorithms.logprobs import token_logprobs
from rlhf_ray.models.batch import TokenBatch


class TokenScorer(nn.Module):
    """A causal language model that gives the log-probabilities of a batch's scored tokens.

    Attributes:
        lm: The model, perhaps with adapters.
        temperature: Divides the logits.
        chunk_tokens: Logits exist for at most this many tokens at a time.
        entropy_gradient: Whether the entropy is trained on; without, it costs no graph.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        temperature: float,
        chunk_tokens: int,
        entropy_gradient: bool = False,
    ) -> None:
        """Wrap `lm`."""
        super().__init__()
        self.lm = lm
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.entropy_gradient = entropy_gradient

    def forward(
        self,
        batch: TokenBatch,
        *,
        with_entropy: bool = False,
        num_chunks: int | None = None,
        temperature: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score.

        Args:
            batch: What to score.
            with_entropy: Also the entropy (nats) of the distribution each token was drawn from.
            num_chunks: Of the vocabulary product; ranks that work in step must agree on it.
            temperature: In place of the model's own.

        Returns:
            float32 [T] log-probabilities, and entropies or None.
        """
        base = base_of(self.lm)
        scale = _logit_scale(base.config)
        head = base.get_output_embeddings()
        return token_logprobs(
            hidden_states(base, batch),
            head if scale == 1.0 else lambda hidden_tD: head(hidden_tD) * scale,
            batch.targets_T,
            temperature=self.temperature if temperature is None else temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
            entropy_gradient=self.entropy_gradient,
            softcap=getattr(base.config, "final_logit_softcapping", None),
            num_chunks=num_chunks,
        )


class ValueModel(nn.Module):
    """A decoder with a scalar head: the expected return before each scored token.

    The head starts near zero, with standard deviation 1 / (D + 1) (Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325, appendix B.1), so that first estimates are small.
    """

    def __init__(self, lm: PreTrainedModel, *, seed: int) -> None:
        """Take the decoder of `lm`; its language-model head is dropped."""
        super().__init__()
        base = base_of(lm)
        self.decoder = base.base_model
        size = base.config.get_text_config().hidden_size
        generator = torch.Generator().manual_seed(seed)
        reference = next(p for p in self.decoder.parameters() if p.requires_grad)
        self.value_head = nn.Linear(size, 1, dtype=reference.dtype, device=reference.device)
        weight = torch.randn(1, size, generator=generator) / (size + 1)
        with torch.no_grad():
            self.value_head.weight.copy_(weight)
            self.value_head.bias.zero_()

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Values, float32 [T]."""
        hidden_TD = _decode(self.decoder, batch)
        values: torch.Tensor = self.value_head(hidden_TD.to(self.value_head.weight.dtype))
        return values.squeeze(-1).float()


def base_of(lm: Any) -> Any:
    """The transformers model itself, whether or not adapters are wrapped around it."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def hidden_states(lm: PreTrainedModel, batch: TokenBatch) -> torch.Tensor:
    """Final hidden states at the positions that predict the scored tokens: [T, D]."""
    return _decode(lm.base_model, batch)


def _decode(decoder: nn.Module, batch: TokenBatch) -> torch.Tensor:
    packing = batch.packing
    layout: dict[str, Any] = {}
    if packing is not None:
        layout = {
            "packing": packing,
            "cu_seq_lens_q": packing.cu_lens,
            "cu_seq_lens_k": packing.cu_lens,
            "max_length_q": packing.max_len,
            "max_length_k": packing.max_len,
        }
    output = decoder(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **layout
    )
    hidden: torch.Tensor = output.last_hidden_state
    return hidden.flatten(0, 1)[batch.predict]


def _logit_scale(config: Any) -> float:
    """What some families multiply (Cohere) or divide (Granite) their logits by."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(
        getattr(config, "logits_scaling", None) or 1.0
    )
