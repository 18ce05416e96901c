"""vLLM's worker on a CPU, with draws and kernels of ours; named in the engine's arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker

from actors.engines.cpu_kernels import use_fused_kernels
from actors.engines.draws import SeededSampler


class FusedWorker(CPUWorker):
    """As vLLM's, with `SeededSampler` and the kernels of `cpu_kernels`."""

    def init_device(self) -> None:
        """Make the model's runner.

        Raises:
            ValueError: It is vLLM's second one, which has a seeded sampler of its own.
        """
        super().init_device()
        if self.use_v2_model_runner:
            raise ValueError("VLLM_USE_V2_MODEL_RUNNER must not be set for engines on a CPU")
        use_fused_kernels()
        runner = self.model_runner
        runner.sampler = SeededSampler(runner.sampler.logprobs_mode, self._positions)

    def _positions(self) -> Any:
        """How many tokens of its response each running request has: uint64 [B]."""
        batch = self.model_runner.input_batch
        rows = slice(batch.num_reqs)
        positions_B = batch.num_tokens_no_spec[rows] - batch.num_prompt_tokens[rows]
        return positions_B.astype(np.uint64)
