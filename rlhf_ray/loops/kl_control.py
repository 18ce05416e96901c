"""The KL controller that a configuration asks for."""

from __future__ import annotations

from rlhf_ray.algorithms.kl import AdaptiveKLController, FixedKLController, KLController
from rlhf_ray.config.algorithm import KlConfig


def kl_controller(config: KlConfig) -> KLController:
    """Fixed, or adaptive towards a target."""
    if config.controller == "fixed":
        return FixedKLController(coefficient=config.coefficient)
    return AdaptiveKLController(
        initial_coefficient=config.coefficient, target=config.target, horizon=config.horizon
    )
