"""vLLM's own metrics at Ray's agents: `ray_vllm_*`, beside the run's."""

from __future__ import annotations

from typing import Any

import ray.util.metrics


def engine_stat_logger() -> Any:
    """The class of vLLM's logger that writes to Ray."""
    from vllm.v1.metrics import ray_wrappers

    # vLLM takes Ray for missing where Ray Serve is, though it only asks that for a replica's id.
    ray_wrappers.ray_metrics = ray.util.metrics
    return ray_wrappers.RayPrometheusStatLogger
