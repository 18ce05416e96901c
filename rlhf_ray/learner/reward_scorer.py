"""Scores of rollouts by a reward model that has a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.rewards import RewardModelConfig
from rlhf_ray.data.chat.answers import tokenize_answer, tokenize_sampled
from rlhf_ray.data.chat.template import shows_tools
from rlhf_ray.data.chat.tokenizer import load_tokenizer, vocabulary_digest
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.data.messages import as_chat
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.models.check import settle
from rlhf_ray.models.classifier import load_classifier
from rlhf_ray.models.decoder import base_of
from rlhf_ray.models.limits import most_tokens
from rlhf_ray.models.reward import RewardModel
from rlhf_ray.models.reward_statistics import RewardStatistics, read_statistics
from rlhf_ray.packing import plan_forward
from rlhf_ray.shared_prompts import PromptShare
from rlhf_ray.types import IntArray, Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """A reward model's score of a text, and whether it saw the beginning alone."""

    value: float
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A response behind its prompt, and how many tokens that has."""

    ids_T: IntArray
    num_prompt_tokens: int

    def cut(self, max_tokens: int | None) -> _Text:
        """Its first tokens; all for None."""
        ids_T = self.ids_T[:max_tokens]
        return _Text(ids_T=ids_T, num_prompt_tokens=min(self.num_prompt_tokens, len(ids_T)))


class RewardScorer:
    """Scores each rollout behind its prompt as the reward model's own template opens it.

    A response keeps its tokens where the reward model has the policy's vocabulary; else its text is
    put there as it stands and tokenized anew. It ends with the end token of the model's training.

    Attributes:
        keeps_tokens: Whether the vocabulary is the one that was sampled in.
        model: What scores.
        max_tokens: Of a text; None for no limit.
        statistics: By which scores are centred and scaled; mean 0 and spread 1 for not at all.
    """

    def __init__(
        self,
        config: RewardModelConfig,
        builder: EngineBuilder,
        *,
        model: RewardModel | None = None,
        vocabulary: str = "",
        end_ids: Collection[int] = (),
    ) -> None:
        """Load model and tokenizer; `model` is that of `config.path`, where it is held already.

        `builder` is made from `forward_config`; `vocabulary` and `end_ids` are of what rollouts
        were sampled in, see `RewardSpec`.

        Raises:
            ConfigError: It cannot be loaded, was never trained to score, has no logit
                `config.label`, or no statistics to normalize by.
        """
        self.config = config
        self.tokenizer = load_tokenizer(
            config.tokenizer or config.path,
            chat_template=config.chat_template,
            trust_remote_code=config.trust_remote_code,
        )
        self.end_ids = end_ids
        self.keeps_tokens = vocabulary == vocabulary_digest(self.tokenizer)
        self.statistics = _statistics(config)
        self.model = model or _load(config, builder)
        self.engine = builder.freeze(self.model)
        limits = (config.max_length, most_tokens(base_of(self.model.lm).config))
        self.max_tokens = min((limit for limit in limits if limit), default=None)

    def score(self, rollouts: Sequence[Rollout]) -> list[ModelScore]:
        """One score a rollout, in order; micro-batches by the token budget.

        A text that is longer than `max_length`, or than the model has positions, is cut at its end.
        """
        whole = [self._tokenize(rollout) for rollout in rollouts]
        texts = [text.cut(self.max_tokens) for text in whole]
        [micro_batches] = plan_forward(
            [len(text.ids_T) for text in texts],
            data_parallel_size=1,
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.model.padded,
            prompts_B=[
                PromptShare(prompt=rollout.draw, num_tokens=text.num_prompt_tokens)
                for rollout, text in zip(rollouts, texts, strict=True)
            ]
            if self.model.mode.shares_prompts
            else None,
        )
        scores = [0.0] * len(rollouts)
        for rows in micro_batches:
            for row, score in zip(rows, self._forward([texts[r] for r in rows]), strict=True):
                scores[row] = (score - self.statistics.mean) / self.statistics.std
        return [
            ModelScore(value=score, is_cut=len(text.ids_T) < len(uncut.ids_T))
            for score, text, uncut in zip(scores, texts, whole, strict=True)
        ]

    def _tokenize(self, rollout: Rollout) -> _Text:
        text, where = rollout.prompt.text, rollout.prompt.prompt_id
        answer = rollout.text
        prompt = as_chat(text, "user") if self.config.chat else text
        if rollout.messages and not (self.keeps_tokens or isinstance(prompt, str)):
            prompt = [*prompt, *map(dict, rollout.messages[:-1])]
            answer = rollout.messages[-1]["content"]
        is_ended = rollout.finish_reason == "stop"
        options = {} if isinstance(prompt, str) else self._options(rollout.prompt)
        if self.keeps_tokens:
            prompt_ids, answer_ids = tokenize_sampled(
                self.tokenizer,
                prompt,
                rollout.response_ids_T.tolist(),
                end_ids=self.end_ids,
                is_ended=is_ended,
                options=options,
                where=where,
            )
        else:
            prompt_ids, answer_ids = tokenize_answer(
                self.tokenizer,
                prompt,
                answer,
                is_ended=is_ended,
                is_sampled=True,
                is_foreign=True,
                options=options,
                where=where,
            )
        ids_T = np.array([*prompt_ids, *answer_ids], dtype=np.int32)
        return _Text(ids_T=ids_T, num_prompt_tokens=len(prompt_ids))

    def _options(self, prompt: Prompt) -> dict[str, Any]:
        """What the prompt's row has for a chat template, but for tools that this one would hide."""
        options = template_options(prompt.columns, prompt.prompt_id)
        if not shows_tools(self.tokenizer, str(self.tokenizer.chat_template)):
            options.pop("tools", None)
        return options

    def _forward(self, texts: Sequence[_Text]) -> list[float]:
        layout = self.model.lay_out(
            [text.ids_T for text in texts], [text.num_prompt_tokens for text in texts]
        )
        with self.engine.inference():
            scores: list[float] = self.engine(layout).scores_B.tolist()
        return scores


def forward_config(config: RewardModelConfig) -> ForwardConfig:
    """How a reward model is held while it scores: whole, on each rank."""
    return ForwardConfig(
        model=ModelConfig(
            path=config.path, dtype=config.dtype, trust_remote_code=config.trust_remote_code
        )
    )


def _load(config: RewardModelConfig, builder: EngineBuilder) -> RewardModel:
    section = forward_config(config)
    lm = load_classifier(section.model, device=builder.device)
    if config.label >= lm.config.num_labels:
        raise ConfigError(
            f"reward.model.label must be below the model's {lm.config.num_labels} labels, "
            f"got {config.label}"
        )
    scorer = RewardModel(lm, label=config.label).eval()
    settle(scorer, section, builder.device)
    return scorer


def _statistics(config: RewardModelConfig) -> RewardStatistics:
    if config.normalize == "none":
        return RewardStatistics(mean=0.0, std=1.0)
    stored = read_statistics(Path(config.path))
    if config.normalize == "center":
        return RewardStatistics(mean=stored.mean, std=1.0)
    if not stored.std > 0.0:
        raise ConfigError(
            f"reward.model.normalize standardize needs a spread above 0, {config.path} has "
            f"{stored.std}: set center"
        )
    return stored
