"""The user's environment by its path, as something that makes one for each rollout."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.environments.protocol import Environment
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.loading import load_callable


def environment_maker(config: EnvironmentConfig) -> Callable[[], Environment]:
    """What makes the environment of a rollout; one is made here, and looked at.

    Raises:
        ConfigError: There is no such class or function, it does not take the arguments, or what it
            gives is no environment.
    """
    made_by = load_callable(config.made_by, what="environment")

    def make() -> Environment:
        environment: Environment = made_by(**config.made_with)
        return environment

    try:
        first = make()
    # The user's code, which may raise anything.
    except Exception as error:
        raise ConfigError(
            f"environment {config.made_by!r} with the arguments {config.made_with} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(first, Environment):
        raise ConfigError(
            f"environment {config.made_by!r} must give an object with reset, step and close, got "
            f"{type(first).__name__}"
        )
    return make
