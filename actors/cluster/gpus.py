"""The GPUs that an actor was promised, in the process that is to compute on them."""

from __future__ import annotations

import os

from rlhf_ray.config.checks.machine import ENGINES, engine_fault, installed_versions
from rlhf_ray.errors import ConfigError
from rlhf_ray.gpus import Card, card_fault, cuda_fault, read_driver, torch_build


def require_gpus(name: str, *, num_gpus: int) -> None:
    """Make sure that torch sees what this actor was given: no role falls back to the CPU.

    Args:
        name: Of the actor.
        num_gpus: That its configuration promises.

    Raises:
        ConfigError: torch sees fewer; names the driver, CUDA and torch's build.
    """
    import torch

    # Counting makes no CUDA context, which would hold memory beside an engine's processes.
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen >= num_gpus:
        return
    driver = read_driver()
    build = torch_build(torch.__version__, torch.version.cuda)
    reason = cuda_fault(build, driver)
    if reason is None:
        assert driver is not None
        reason = (
            f"torch {build.version} for CUDA {torch.version.cuda} cannot use all of the "
            f"{len(driver.cards)} that driver {driver.version} shows"
        )
    raise ConfigError(
        f"{name}: {num_gpus} GPU promised, torch sees {seen} on {os.uname().nodename}: {reason} "
        f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"
    )


def require_capable_gpu(name: str) -> None:
    """Make sure that the GPU which this process computes on is new enough.

    Raises:
        ConfigError: It is not.
    """
    import torch

    properties = torch.cuda.get_device_properties(0)
    card = Card(name=properties.name, capability=(properties.major, properties.minor))
    if fault := card_fault(card):
        raise ConfigError(f"{name} on {os.uname().nodename}: {fault}")


def require_engine(name: str, *, num_gpus: int) -> None:
    """The same for a vLLM engine, whose package must be of the kind as well.

    Raises:
        ConfigError: As `require_gpus`; or the other kind of vLLM is installed.
    """
    if fault := engine_fault(installed_versions(ENGINES), on_gpus=num_gpus > 0):
        raise ConfigError(f"{name} on {os.uname().nodename}: {fault}")
    if num_gpus:
        require_gpus(name, num_gpus=num_gpus)
