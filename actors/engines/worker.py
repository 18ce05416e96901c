"""What this project asks of vLLM's worker processes; vLLM mixes it into their class."""

from __future__ import annotations

from rlhf_ray.metrics.memory import peak_memory_gb


class WorkerReport:
    """Named in the engine's arguments as `worker_extension_cls`."""

    def report_peak_memory_gb(self) -> float:
        """Of this worker, which holds weights and KV cache."""
        return peak_memory_gb()
