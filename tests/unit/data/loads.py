"""The rows of a data set as each job loads them."""

from __future__ import annotations

from typing import Any

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.examples.preferences import Answers, LabelledAnswers, Pairs, Rankings
from rlhf_ray.data.examples.prompts import Prompts
from rlhf_ray.data.examples.sft import Examples
from rlhf_ray.data.examples.tokenization import Tokenization
from rlhf_ray.data.loading.load import load
from rlhf_ray.data.rows.report import Loaded
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, SftExample


def load_sft(config: DataConfig, tokenizer: Any, **settings: int) -> Loaded[SftExample]:
    return _load(Examples, config, tokenizer, **settings)


def load_rankings(config: DataConfig, tokenizer: Any, **settings: int) -> Loaded[Ranking]:
    return _load(Rankings, config, tokenizer, **settings)


def load_pairs(config: DataConfig, tokenizer: Any, **settings: int) -> Loaded[Ranking]:
    return _load(Pairs, config, tokenizer, **settings)


def load_labelled(config: DataConfig, tokenizer: Any, **settings: int) -> Loaded[LabelledAnswer]:
    return _load(LabelledAnswers, config, tokenizer, **settings)


def load_answers(config: DataConfig, tokenizer: Any, **settings: int) -> Loaded[Ranking]:
    return _load(Answers, config, tokenizer, **settings)


def load_prompts(
    config: DataConfig, tokenizer: Any, *, context_tokens: int, seed: int = 0
) -> Loaded[Prompt]:
    return _load(Prompts, config, tokenizer, max_length=context_tokens, seed=seed)


def _load(
    kind: type[Tokenization[Any]],
    config: DataConfig,
    tokenizer: Any,
    *,
    max_length: int,
    seed: int = 0,
) -> Loaded[Any]:
    return load(config, kind.of(config, tokenizer, max_length=max_length), seed=seed)
