"""Loading sequence classifiers: reward models, and models that are to become one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.decoder import base_of, decoder_name
from rlhf_ray.models.linear import new_head
from rlhf_ray.models.load import load_causal_lm, load_pretrained, with_adapter


def load_classifier(
    config: ModelConfig, *, device: torch.device, head_seed: int | None = None
) -> PreTrainedModel:
    """A sequence classifier, ready to train or to score; see `load_causal_lm`.

    With `head_seed` the model is to have one logit, and gets a new head where the checkpoint is a
    plain language model. None takes the labels as they are, and no new head.

    Raises:
        ConfigError: Unreadable model, weights that it lacks, or as many labels as cannot be.
    """
    model, missing = load_pretrained(
        AutoModelForSequenceClassification,
        "reward model",
        config,
        device=device,
        overrides={} if head_seed is None else {"num_labels": 1},
    )
    head_names = heads_of(model)
    # transformers makes up what is missing at random, with a warning. BERT's pooler counts as head:
    # a masked language model has none.
    lost = {n for n in missing if n.split(".")[0] not in head_names and ".pooler." not in n}
    if lost or (missing and head_seed is None):
        raise ConfigError(
            f"{config.path!r} is no reward model: it lacks the weights {', '.join(sorted(missing))}"
        )
    if is_packable(model) and head_seed is not None and missing:
        model.score = new_head(
            model.config.get_text_config().hidden_size,
            like=model.score.weight,
            bias=model.score.bias is not None,
            seed=head_seed,
        )
    if config.lora.rank:
        model = with_adapter(model, config, head_names=head_names)
    return model


def load_decoder(config: ModelConfig, *, device: torch.device, seed: int) -> PreTrainedModel:
    """What a critic starts from: a causal language model, or a reward model with its head.

    Raises:
        ConfigError: As `load_classifier`; or a reward model that is no decoder.
    """
    described = AutoConfig.from_pretrained(
        config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    names = described.architectures or ()
    if not any(name.endswith("ForSequenceClassification") for name in names):
        return load_causal_lm(config, device=device)
    model = load_classifier(config, device=device, head_seed=seed)
    if not is_packable(base_of(model)):
        raise ConfigError(f"a critic needs a decoder, got {config.path!r}, {', '.join(names)}")
    return model


def heads_of(model: Any) -> list[str]:
    """Names of the children that stand beside the base model and have weights."""
    body = decoder_name(model)
    return [
        name
        for name, child in model.named_children()
        if name != body and any(True for _ in child.parameters())
    ]


def freeze_score_bias(lm: Any) -> None:
    """Take the bias of the scores themselves out of training.

    Losses of pairs and rankings see differences of scores only: a bias that all scores have has no
    gradient.
    """
    base = base_of(lm)
    num_scores = base.config.num_labels
    for name in heads_of(base):
        for module in base.get_submodule(name).modules():
            is_scores = isinstance(module, nn.Linear) and module.out_features == num_scores
            if is_scores and module.bias is not None:
                module.bias.requires_grad_(False)


def is_packable(model: Any) -> bool:
    """Whether it is a decoder whose score is a product with the last token's hidden state.

    What is not, takes its own way from tokens to logits, in padded rectangles.
    """
    is_plain = isinstance(getattr(model, "score", None), nn.Linear)
    return is_plain and not model.config.is_encoder_decoder
