"""Files that a job's actors read on their own nodes, role by role; the driver reads data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.rewards import RewardModelConfig
from rlhf_ray.config.run import JobConfig


@dataclass(frozen=True, kw_only=True)
class NodePath:
    """A path and the key of the configuration that it stands at."""

    key: str
    path: str


def node_paths(config: JobConfig) -> dict[str, tuple[NodePath, ...]]:
    """What each role's actors read where they are; the policy's start where a role names no model.

    What this machine does not have is a hub's or an import's name, and is left out.
    """
    named = {role: _paths(role, model) for role, model in config.models.items() if model.path}
    if isinstance(config, OnlineConfig):
        functions = [
            NodePath(key=f"reward.functions.{index}.path", path=function.path.rpartition(":")[0])
            for index, function in enumerate(config.reward.functions)
        ]
        scripts = [function for function in functions if function.path.endswith(".py")]
        named["reward"] = scripts + _paths("reward", config.reward.model)
    start = named[config.trained_role]
    return {
        role: tuple(path for path in named.get(role, start) if Path(path.path).exists())
        for role in config.groups
    }


def _paths(role: str, model: ModelConfig | RewardModelConfig) -> list[NodePath]:
    named = {"path": model.path, "tokenizer": model.tokenizer}
    return [NodePath(key=f"{role}.model.{name}", path=path) for name, path in named.items() if path]
