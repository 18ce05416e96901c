"""Does every parameter that should train move? A frozen or unreached one is a silent failure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepspeed.utils import safe_get_full_fp32_param

from rlhf_ray.errors import RunError

# Low-rank adapters and fresh heads need a second step: the factor that starts at 0 hides the other.
STEPS_TO_MOVE = 3


class MovementCheck:
    """Compares each parameter's float32 master copy with its start over the first steps.

    Raises (from `after_step`):
        RunError: After three steps with a gradient some parameters have not moved; it names them.
    """

    def __init__(
        self, named: Sequence[tuple[str, torch.nn.Parameter]], *, partitioned: bool
    ) -> None:
        """Take the fingerprints; under ZeRO that is a collective."""
        self._partitioned = partitioned
        self._still = [(name, p, self._fingerprint(p)) for name, p in named]
        self._num_steps = 0

    def after_step(self) -> None:
        """Look again, after a step whose gradient was not zero."""
        if not self._still:
            return
        self._num_steps += 1
        self._still = [
            (name, p, before) for name, p, before in self._still if self._fingerprint(p) == before
        ]
        if self._still and self._num_steps >= STEPS_TO_MOVE:
            names = [name for name, _, _ in self._still]
            raise RunError(
                f"{len(names)} parameters should train and have not moved in {self._num_steps} "
                f"optimiser steps: {', '.join(names[:10])}"
            )

    def _fingerprint(self, parameter: torch.nn.Parameter) -> tuple[float, float]:
        value = safe_get_full_fp32_param(parameter) if self._partitioned else parameter.detach()
        norm = torch.linalg.vector_norm(value, dtype=torch.float64)
        return float(value.sum(dtype=torch.float64)), float(norm)
