"""Mean and spread of a reward model's scores on reference answers, stored beside its weights.

Subtracting the mean makes reference answers score 0 on average (Stiennon et al. 2020,
https://arxiv.org/abs/2009.01325, appendix B.1).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.errors import ConfigError

FILE_NAME = "reward_statistics.json"


@dataclass(frozen=True, kw_only=True)
class RewardStatistics:
    """Of scores of reference answers."""

    mean: float
    std: float


def write_statistics(folder: Path, *, mean: float, std: float) -> None:
    """Store them with the model in `folder`, whole or not at all."""
    aside = folder / f".{FILE_NAME}"
    aside.write_text(json.dumps({"mean": mean, "std": std}) + "\n", encoding="utf-8")
    os.replace(aside, folder / FILE_NAME)


def read_statistics(folder: Path) -> RewardStatistics:
    """Read what `write_statistics` wrote.

    Raises:
        ConfigError: Nothing there, or not two numbers.
    """
    path = folder / FILE_NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return RewardStatistics(mean=float(stored["mean"]), std=float(stored["std"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"reward.model.normalize needs {path}, which `rlhf-ray rm` writes; set normalize: none "
            f"for a model without it ({type(error).__name__}: {error})"
        ) from error
