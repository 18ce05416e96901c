"""What a job's engines are started with, and how weights reach them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from uuid import uuid4

from actors.engines.spec import EngineSpec
from actors.weights.probe import EXACT, ROUNDED, GapLimits
from actors.weights.sync_spec import SyncSpec
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.rollout import EngineConfig
from rlhf_ray.models.identity import engine_identity
from rlhf_ray.models.limits import context_length


def engine_spec(*jobs: AnyJob) -> EngineSpec | None:
    """What the engines of the first job that has any are started with, before data are read.

    Raises:
        ConfigError: Model or tokenizer cannot be read.
    """
    config = first_online(jobs)
    if config is None:
        return None
    model = config.policy.model
    context = config.rollout.max_model_len or context_length(model)
    return EngineSpec(
        model_path=model.path,
        tokenizer_path=model.tokenizer or model.path,
        revision=model.revision,
        identity=engine_identity(model),
        trust_remote_code=model.trust_remote_code,
        engine=_engine_of(config),
        max_model_len=context,
        num_gpus=config.placement.rollout.gpus_per_rank,
        weight_backend=config.weight_backend,
        sleeps=config.engines_sleep,
        adapter_rank=config.policy.model.lora.rank if config.adapters_apart else 0,
    )


def first_online(jobs: Iterable[AnyJob]) -> OnlineConfig | None:
    """The first of some jobs that has engines."""
    return next((job for job in jobs if isinstance(job, OnlineConfig)), None)


def _engine_of(config: OnlineConfig) -> EngineConfig:
    """Where sampling goes on beside publications, with seats more for the probe of each.

    Responses take `max_num_seqs` (see `ReplicaSet`), so that it never waits for one of them to end.
    """
    engine = config.rollout.of_engine
    if not config.max_staleness:
        return engine
    seats = engine.max_num_seqs + config.publication.probe_sequences
    # An engine step has a token for each.
    tokens = max(engine.max_num_batched_tokens, seats)
    return engine.model_copy(update={"max_num_seqs": seats, "max_num_batched_tokens": tokens})


def sync_spec(config: OnlineConfig) -> SyncSpec:
    """How weights travel to the started engines."""
    return SyncSpec(
        backend=config.weight_backend,
        gpus_per_replica=config.placement.rollout.gpus_per_rank,
        bucket_bytes=config.bucket_mb * 2**20,
        timeout_s=config.timeouts.publish_s,
        # Over vLLM's backends one that is left out ends the publication for all.
        late_s=config.timeouts.hang_s if config.weight_backend == "object_store" else math.inf,
        keeps_cache=config.publication.running == "keep",
        base=uuid4().hex if config.adapters_apart else "",
    )


def gap_limits(config: OnlineConfig) -> GapLimits:
    """What the probe lets pass: as configured, else by what both sides compute in."""
    publication = config.publication
    default = EXACT if config.computes_in_float32 else ROUNDED
    return GapLimits(
        largest=publication.max_logprob_gap or default.largest,
        mean=publication.max_logprob_gap_mean or default.mean,
        p99=publication.max_logprob_gap_p99 or default.p99,
    )
