"""What an engine tells of itself: its load, its memory, and vLLM's own metrics at Ray's agents."""

from __future__ import annotations

import logging
from typing import Any

import torch

from actors.weights.segment import SegmentPlace, mapped
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.usage import peak_memory_gb

logger = logging.getLogger(__name__)


class EngineLoad:
    """A stat logger of vLLM's (`StatLoggerBase`), which hears of every step of the engine.

    Queues are means over engine steps, so that an engine without requests does not thin them out.
    """

    def __init__(self) -> None:
        """Nothing heard yet."""
        self._reset()

    def _reset(self) -> None:
        self._num_steps = self._num_running = self._num_waiting = 0
        self._queue_max = self._num_preemptions = 0
        self._kv_cache_share_max = 0.0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """One step of the engine; either kind of statistics may be missing."""
        if scheduler_stats is not None:
            num_waiting = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
            self._num_steps += 1
            self._num_running += scheduler_stats.num_running_reqs
            self._num_waiting += num_waiting
            self._queue_max = max(self._queue_max, num_waiting)
            self._kv_cache_share_max = max(self._kv_cache_share_max, scheduler_stats.kv_cache_usage)
        if iteration_stats is not None:
            self._num_preemptions += iteration_stats.num_preempted_reqs

    def take(self) -> dict[str, float]:
        """What was heard since the last time, by the names below `engine/`."""
        num_steps = max(1, self._num_steps)
        taken = {
            "running_mean": self._num_running / num_steps,
            "queue_mean": self._num_waiting / num_steps,
            "queue_max": float(self._queue_max),
            "kv_cache_share_max": self._kv_cache_share_max,
            "preemptions": float(self._num_preemptions),
        }
        self._reset()
        return taken

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say: `take` does."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """A sleeping engine takes no steps."""


class WorkerReport:
    """What each of vLLM's worker processes tells and does; vLLM mixes it into their class.

    Named in the engine's arguments as `worker_extension_cls`.
    """

    def report_peak_memory_gb(self) -> float:
        """Of this worker, which holds weights and KV cache."""
        return peak_memory_gb()

    def can_read(self, place: dict[str, int]) -> bool:
        """Whether it can read memory of another process (a `SegmentPlace`)."""
        try:
            mapped(SegmentPlace(**place))
        except RunError as error:
            logger.warning("%s", error)
            return False
        return True

    def use_threads(self, number: int) -> None:
        """Compute with so many from now on; vLLM's kernels ask the library that torch tells.

        Raises:
            RunError: It still computes with another number.
        """
        # vLLM's worker on a CPU puts a function that does nothing in the place of torch's own.
        torch._C.set_num_threads(number)
        if (own := torch.get_num_threads()) != number:
            raise RunError(f"an engine should compute with {number} threads, and has {own}")

    def use_adapter(self) -> None:
        """Answer with the adapter that was published last."""
        worker: Any = self
        worker.weight_transfer_engine.use_adapter()


def engine_stat_logger() -> Any:
    """The class of vLLM's logger that writes to Ray: `ray_vllm_*`, beside the run's metrics."""
    import ray.util.metrics
    from vllm.v1.metrics import ray_wrappers

    # vLLM takes Ray for missing where Ray Serve is, though it only asks that for a replica's id.
    ray_wrappers.ray_metrics = ray.util.metrics

    class Logger(ray_wrappers.RayPrometheusStatLogger):
        def record(self, scheduler_stats: Any, iteration_stats: Any, *more: Any, **by: Any) -> None:
            if iteration_stats is not None:
                # An observation a token, each through Ray's checks of values and tags; nobody reads
                # a rollout token by token.
                iteration_stats.inter_token_latencies_iter = []
            super().record(scheduler_stats, iteration_stats, *more, **by)

    return Logger
