"""Settings that a configuration gives and the job does not look at: said in the log, not refused.

An ablation on the command line (`--algorithm.kl.coefficient 0`) leaves keys of the file behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.algorithm_table import CORRECTIONS, POLICY_LOSSES
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.learners import OptimConfig, ReferenceConfig
from rlhf_ray.config.models import LoraConfig, ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.supervised import SupervisedConfig

logger = logging.getLogger(__name__)


def warn_of_unused(config: RunConfig, who: str) -> None:
    """Name them in the log, if there are any; `who` does not look at them."""
    if unused := unused_settings(config):
        logger.warning("settings that %s does not look at: %s", who, "; ".join(unused))


def unused_settings(config: RunConfig) -> list[str]:
    """Each key that is set to another value than its default in vain, and why."""
    match config:
        case OnlineConfig():
            return [*_online(config)]
        case SupervisedConfig():
            return [*_supervised(config)]
    return []


def _online(config: OnlineConfig) -> Iterator[str]:
    algorithm = config.algorithm
    yield from _algorithm(algorithm, uses_value=config.uses_value)
    yield from _learner("policy", config.policy.model, config.policy.optim)
    if config.uses_value:
        yield from _learner("value", config.value.model, config.value.optim)
        yield from _warmup("value", config.value.optim, config.value_updates)
    elif config.value.model.path:
        yield f"value.model.path (advantage {algorithm.advantage} has no critic)"
    if not config.uses_reference and config.reference.model.path:
        yield "reference.model.path (algorithm.kl.coefficient is 0)"
    if config.uses_reference and not config.uses_reference_role:
        yield from _reference_role(config)
    yield from _warmup("policy", config.policy.optim, config.policy_updates)
    yield from _guests(dict(config.placement))


def _algorithm(algorithm: AlgorithmConfig, *, uses_value: bool) -> Iterator[str]:
    advantage, loss = algorithm.advantage, algorithm.policy_loss
    kind = algorithm.correction.kind
    default = AlgorithmConfig(advantage=advantage, policy_loss=loss)
    of_losses = dict.fromkeys(key for row in POLICY_LOSSES.values() for key in row.keys)
    of_corrections = dict.fromkeys(key for keys in CORRECTIONS.values() for key in keys)
    critic, kl = ("value_loss", "value_clip", "lam"), ("kl.target", "kl.horizon")
    in_vain: dict[str, Iterable[str]] = {  # by the reason
        f"policy_loss {loss}": [key for key in of_losses if key not in POLICY_LOSSES[loss].keys],
        f"advantage {advantage} has no critic": () if uses_value else critic,
        f"advantage {advantage}": [
            key for key, is_used in _of_advantage(algorithm).items() if not is_used
        ],
        f"correction.kind {kind}": [
            f"correction.{key}" for key in of_corrections if key not in CORRECTIONS[kind]
        ],
        "kl.controller fixed": kl if algorithm.kl.controller == "fixed" else (),
    }
    for reason, keys in in_vain.items():
        for key in keys:
            if attrgetter(key)(algorithm) != attrgetter(key)(default):
                yield f"algorithm.{key} ({reason})"


def _of_advantage(algorithm: AlgorithmConfig) -> dict[str, bool]:
    row = algorithm.advantage_row
    return {"gamma": row.discounts, "turn_share": row.compares_turns}


def _supervised(config: SupervisedConfig) -> Iterator[str]:
    role, learner = config.trained_role, config.learner
    yield from _learner(role, learner.model, learner.optim)
    if not config.epochs:  # else the rows decide
        yield from _warmup(role, learner.optim, config.total_steps)
    if isinstance(config, DpoConfig) and not config.uses_reference_role:
        if config.uses_reference:
            yield from _reference_role(config)
        elif config.reference.model.path:
            yield "reference.model.path (the losses take no reference)"
        if config.reference_kind == "precomputed":
            yield "reference_kind precomputed (the losses take no reference)"
    placement: Any = getattr(config, "placement", None)
    yield from _guests(dict(placement))


def _reference_role(config: OnlineConfig | DpoConfig) -> Iterator[str]:
    given = {
        "reference": config.reference != ReferenceConfig(),
        "placement.reference": config.placement.reference != GroupConfig(),
    }
    for key in (key for key, is_given in given.items() if is_given):
        yield (
            f"{key} (the policy without its adapter is the reference; reference_kind: role gives "
            "it ranks of its own)"
        )


def _learner(role: str, model: ModelConfig, optim: OptimConfig) -> Iterator[str]:
    if optim.schedule == "constant" and optim.min_lr_share:
        yield f"{role}.optim.min_lr_share (schedule is constant)"
    if not model.lora.rank and model.lora != LoraConfig():
        yield f"{role}.model.lora (its rank is 0: all weights are trained)"


def _warmup(role: str, optim: OptimConfig, num_steps: int) -> Iterator[str]:
    if optim.warmup_steps >= num_steps:
        yield (
            f"{role}.optim.schedule (its {optim.warmup_steps} warmup_steps are not over in the "
            f"job's {num_steps} optimiser steps)"
        )


def _guests(groups: Mapping[str, GroupConfig]) -> Iterator[str]:
    for role, group in groups.items():
        if group.share and group.strategy != "PACK":
            yield f"placement.{role}.strategy (it lives with {group.share})"
