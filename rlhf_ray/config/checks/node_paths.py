"""Files that a job's actors read on their own nodes, role by role; the driver reads data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.supervised import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class NodePath:
    """A path and the key of the configuration that it stands at."""

    key: str
    path: str


def node_paths(config: JobConfig) -> dict[str, tuple[NodePath, ...]]:
    """What each role's actors read where they are.

    What this machine does not have is a hub's or an import's name, and is left out.
    """
    match config:
        case OnlineConfig():
            named = _online(config)
        case SupervisedConfig():
            named = _supervised(config)
        case _:
            raise TypeError(f"no paths are known of a {type(config).__name__}")
    return {
        role: tuple(path for path in named.get(role, ()) if Path(path.path).exists())
        for role in config.groups
    }


def _online(config: OnlineConfig) -> Mapping[str, list[NodePath]]:
    policy = [*_model("policy.model", config.policy.model)]
    reward = config.reward
    functions = [
        NodePath(key=f"reward.functions.{index}.path", path=function.path.rpartition(":")[0])
        for index, function in enumerate(reward.functions)
    ]
    scorer = _named("reward.model", path=reward.model.path, tokenizer=reward.model.tokenizer)
    return {
        "policy": policy,
        "rollout": policy,
        "value": [*_model("value.model", config.value.model)] or policy,
        "reference": [*_model("reference.model", config.reference.model)] or policy,
        "reward": [*(path for path in functions if path.path.endswith(".py")), *scorer],
    }


def _supervised(config: SupervisedConfig) -> Mapping[str, list[NodePath]]:
    learner = [*_model(f"{config.trained_role}.model", config.learner.model)]
    models = config.models.items()
    return {role: [*_model(f"{role}.model", model)] or learner for role, model in models}


def _model(key: str, model: ModelConfig) -> Iterator[NodePath]:
    if model.path:
        yield from _named(key, path=model.path, tokenizer=model.tokenizer)


def _named(key: str, **paths: str) -> Iterator[NodePath]:
    for name, path in paths.items():
        if path:
            yield NodePath(key=f"{key}.{name}", path=path)
