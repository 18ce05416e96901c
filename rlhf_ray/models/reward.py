"""A reward model: any sequence classifier, decoder or encoder, in training and in scoring alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.models.batch import Layout, lay_out, moved
from rlhf_ray.models.classifier import heads_of, is_packable
from rlhf_ray.models.decoder import base_of, decode, decoder_of, require_experts
from rlhf_ray.models.linear import in_float32
from rlhf_ray.models.modes import CHECKED_PROMPT, CheckedModel, ForwardMode
from rlhf_ray.models.packed import take_rows
from rlhf_ray.types import IntArray


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """One pass.

    Attributes:
        scores_B: float32, one score a sequence.
        router_loss: Load-balancing loss of the pass, where it was asked for.
    """

    scores_B: torch.Tensor
    router_loss: torch.Tensor | None = None


class RewardModel(CheckedModel):
    """Scores sequences by one logit of a classifier.

    A decoder's score is read at each sequence's last token. What is no decoder runs on a padded
    rectangle with an attention mask, through its own head.

    Attributes:
        lm: The classifier, perhaps with adapters.
        label: Which logit is the score.
        with_router_loss: Whether to give the load-balancing loss of a model with experts.
        is_packable: Whether it is a decoder.
    """

    outcome = "scores"

    def __init__(
        self,
        lm: PreTrainedModel,
        *,
        label: int = 0,
        float32_head: bool = True,
        with_router_loss: bool = False,
    ) -> None:
        """Wrap `lm`; `float32_head` computes its head in float32, whatever its dtype.

        Raises:
            ConfigError: A load-balancing loss of a model without experts.
        """
        super().__init__()
        base = base_of(lm)
        self.lm, self.label, self.with_router_loss = lm, label, with_router_loss
        self.is_packable = is_packable(base)
        if with_router_loss:
            require_experts(base.config)
        self._own_mode = ForwardMode(
            packed=False,
            attention=base.config._attn_implementation,
            with_mask=True,
            own_head=True,
        )
        if not self.is_packable:
            self.mode = self._own_mode
        if float32_head:
            for name in heads_of(base):
                base.set_submodule(name, in_float32(base.get_submodule(name)))

    def lay_out(
        self, sequences_B: Sequence[IntArray], prompt_lens_B: Sequence[int] | None = None
    ) -> Layout:
        """What `forward` takes, from token ids that begin with prompts of so many tokens."""
        pad_id = base_of(self.lm).config.get_text_config().pad_token_id
        return lay_out(
            sequences_B,
            padded=self.padded,
            device=self.device,
            pad_id=0 if pad_id is None else pad_id,
            prompt_lens_B=prompt_lens_B if self.mode.shares_prompts else None,
        )

    def forward(self, layout: Layout) -> Rewards:
        """Score each sequence."""
        base = base_of(self.lm)
        if not self.mode.own_head:
            decoded = decode(
                decoder_of(self.lm), layout, self.mode, with_router_loss=self.with_router_loss
            )
            logits_BL = base.score(take_rows(decoded.hidden_ND, layout.last_B))
            return Rewards(
                scores_B=logits_BL[:, self.label].float(), router_loss=decoded.router_loss
            )
        output = base(input_ids=layout.input_ids, attention_mask=layout.attention_mask)
        return Rewards(scores_B=output.logits[:, self.label].float())

    def transformer(self) -> Any:
        """The model whose attention is chosen."""
        return base_of(self.lm)

    def modes(self, config: ForwardConfig) -> Sequence[ForwardMode]:
        """The ways that the configuration allows; one alone for what is no decoder."""
        if not self.is_packable:
            return [self._own_mode]
        takes_own = config.layout != "packed" and config.model.attention == "auto"
        return [*super().modes(config), *([self._own_mode] if takes_own else [])]

    def outcomes(self, sequences_B: Sequence[IntArray], *, far: int = 0) -> list[torch.Tensor]:
        """The score of each sequence."""
        layout = self.lay_out(sequences_B, [CHECKED_PROMPT] * len(sequences_B))
        return list(self(moved(layout, far)).scores_B.split(1))

    def own_outcome(self, input_ids_1T: torch.Tensor) -> torch.Tensor:
        """The same of one sequence, by the model's own `forward`."""
        scores_1: torch.Tensor = base_of(self.lm)(input_ids=input_ids_1T).logits[:, self.label]
        return scores_1
