"""Does every parameter that should train move? A frozen or unreached one is a silent failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepspeed.utils import safe_get_full_fp32_param

from rlhf_ray.errors import RunError

# Low-rank adapters and fresh heads need a second step: the factor that starts at 0 hides the other.
STEPS_TO_MOVE = 3
# A change of less than this share of a float32 number may be lost when it is added.
FLOAT32_STEP = torch.finfo(torch.float32).eps


@dataclass(kw_only=True)
class _Still:
    """A parameter that has not moved yet.

    Attributes:
        size: Root mean square of its values.
        num_steps: Steps that should have moved it.
    """

    name: str
    parameter: torch.nn.Parameter
    fingerprint: tuple[float, float]
    size: float
    num_steps: int = 0


class MovementCheck:
    """Compares each parameter's float32 master copy with its start over the first steps.

    A step counts for a parameter only where its rate could change values of the parameter's usual
    size: Adam moves a value by about the rate, and 1.0 + 1e-8 is 1.0 in float32.

    Raises (from `after_step`):
        RunError: After three such steps with a gradient some parameters have not moved; it names
            them.
    """

    def __init__(
        self, named: Sequence[tuple[str, torch.nn.Parameter]], *, partitioned: bool
    ) -> None:
        """Take the fingerprints; under ZeRO that is a collective."""
        self._partitioned = partitioned
        self._still = [self._first_look(name, parameter) for name, parameter in named]

    def after_step(self, lr: float) -> None:
        """Look again, after a step of rate `lr` whose gradient was not zero."""
        self._still = [s for s in self._still if self._fingerprint(s.parameter) == s.fingerprint]
        for still in self._still:
            still.num_steps += lr >= FLOAT32_STEP * still.size
        names = [still.name for still in self._still if still.num_steps >= STEPS_TO_MOVE]
        if names:
            raise RunError(
                f"{len(names)} parameters should train and have not moved in {STEPS_TO_MOVE} "
                f"optimiser steps: {', '.join(names[:10])}"
            )

    def _first_look(self, name: str, parameter: torch.nn.Parameter) -> _Still:
        fingerprint = self._fingerprint(parameter)
        num_values = getattr(parameter, "ds_numel", parameter.numel())
        size = fingerprint[1] / math.sqrt(num_values)
        return _Still(name=name, parameter=parameter, fingerprint=fingerprint, size=size)

    def _fingerprint(self, parameter: torch.nn.Parameter) -> tuple[float, float]:
        """Sum and norm."""
        value = safe_get_full_fp32_param(parameter) if self._partitioned else parameter.detach()
        norm = torch.linalg.vector_norm(value, dtype=torch.float64)
        return float(value.sum(dtype=torch.float64)), float(norm)
