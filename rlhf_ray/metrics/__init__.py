"""Metrics by name to JSONL, console, TensorBoard and W&B, behind one interface.

How metrics of micro-batches and ranks merge is `rlhf_ray.algorithms.metric_sums`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.run import JobConfig
from rlhf_ray.metrics.console import ConsoleSink
from rlhf_ray.metrics.jsonl import JsonlSink, rewind
from rlhf_ray.metrics.log import AppendOnly, MetricsLog, RewindableSink, Sink
from rlhf_ray.metrics.spans_file import SpansFile

__all__ = ["MetricsLog", "Sink", "open_metrics"]


def open_metrics(
    config: JobConfig, *, job: str, resumed_step: int | None = None, beside: Sequence[Sink] = ()
) -> MetricsLog:
    """The log of a run of `job` (`ppo` for instance) below `config.run_dir`.

    `resumed_step` is the last step of the checkpoint that the run goes on from, None for a new run;
    `beside` are sinks that this library does not know, such as Ray's.
    """
    run_dir = Path(config.run_dir)
    last_step = -1 if resumed_step is None else resumed_step
    elapsed_s = rewind(run_dir, last_step)  # an attempt without a checkpoint left steps as well
    sinks: list[RewindableSink] = [JsonlSink(run_dir), *map(AppendOnly, beside)]
    if config.tensorboard:
        from rlhf_ray.metrics.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(run_dir, first_step=last_step + 1))
    if config.wandb.mode != "disabled":
        from rlhf_ray.metrics.wandb_sink import WandbSink

        wandb = WandbSink(config, job=job, run_dir=run_dir)
        sinks.append(AppendOnly(wandb, memory=run_dir / "wandb_steps.json"))
    sinks.append(AppendOnly(ConsoleSink(total_steps=config.total_steps)))
    timeline = None
    if config.spans_mb:
        timeline = SpansFile(run_dir, most_bytes=config.spans_mb * 10**6)
        timeline.rewind(last_step)
    return MetricsLog(sinks, timeline=timeline, last_step=last_step, elapsed_s=elapsed_s)
