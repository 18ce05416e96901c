"""A reward model: any sequence classifier, decoder or encoder, with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config.online import RewardModelConfig
from rlhf_ray.data.tokenizer import load_tokenizer
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.load import resolve_dtype
from rlhf_ray.types import Rollout


class RewardModel:
    """Scores text with one logit of a classifier.

    The text is written anew for the model: its own chat template where the prompt is a chat, else
    prompt and completion as they stand. Its tokenizer may have nothing to do with the policy's.
    """

    def __init__(self, config: RewardModelConfig, *, device: torch.device) -> None:
        """Load model and tokenizer.

        Raises:
            ConfigError: It cannot be loaded, was never trained to score, or has no logit
                `config.label`.
        """
        self.config, self.device = config, device
        self.tokenizer = load_tokenizer(
            config.tokenizer or config.path,
            chat_template=config.chat_template,
            trust_remote_code=config.trust_remote_code,
        )
        self.tokenizer.padding_side = "right"
        try:
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                config.path,
                dtype=resolve_dtype(config.dtype, device),
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(
                f"cannot load a reward model from {config.path!r}: {error}"
            ) from error
        if loaded["missing_keys"]:  # transformers makes them up at random, with a warning
            raise ConfigError(
                f"{config.path!r} is no reward model: it lacks the weights "
                f"{', '.join(sorted(loaded['missing_keys']))}"
            )
        if config.label >= model.config.num_labels:
            raise ConfigError(
                f"reward.model.label must be below the model's {model.config.num_labels} labels, "
                f"got {config.label}"
            )
        # A decoder finds its last real token by the padding id.
        model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.to(device).eval()

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One score a rollout, in order; micro-batches by the token budget, longest first."""
        token_ids = [self._tokenize(rollout) for rollout in rollouts]
        order = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        scores = [0.0] * len(rollouts)
        start = 0
        while start < len(order):
            longest = max(1, len(token_ids[order[start]]))
            rows = order[start : start + max(1, self.config.max_tokens_per_micro_batch // longest)]
            for row, score in zip(rows, self._forward([token_ids[r] for r in rows]), strict=True):
                scores[row] = score
            start += len(rows)
        return scores

    def _tokenize(self, rollout: Rollout) -> list[int]:
        prompt, special = rollout.prompt.text, True
        if isinstance(prompt, str):
            text = prompt + rollout.text
        else:
            messages = [*prompt, {"role": "assistant", "content": rollout.text}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            special = False
        limit = self.config.max_length or None
        token_ids: list[int] = self.tokenizer(
            text, add_special_tokens=special, truncation=limit is not None, max_length=limit
        )["input_ids"]
        return token_ids

    @torch.no_grad()
    def _forward(self, token_ids: list[list[int]]) -> list[float]:
        padded = self.tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self.device)
        logits = self.model(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
        ).logits
        scores: list[float] = logits[:, self.config.label].float().tolist()
        return scores
