"""How policies are sampled: the vLLM engines, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, NonNegativeInt, Share

# vLLM's arguments that follow from keys of the configuration, which the memory plan reads.
OWN_KEYS = {
    "dtype": "rollout.dtype",
    "enforce_eager": "rollout.enforce_eager",
    "gpu_memory_utilization": "rollout.gpu_memory_share",
    "kv_cache_memory_bytes": "rollout.kv_cache_gb",
    "max_model_len": "rollout.max_model_len",
    "max_num_batched_tokens": "rollout.max_num_batched_tokens",
    "max_num_seqs": "rollout.max_num_seqs",
    "tensor_parallel_size": "placement.rollout.gpus_per_rank",
}

# vLLM 0.32 samples at this one where a lower one above 0 is asked.
LEAST_TEMPERATURE = 0.01


class EngineConfig(Config):
    """What a vLLM engine is built from; another one takes a new engine.

    Attributes:
        max_num_seqs: Sequences that one engine runs at a time; matters most for throughput.
        max_num_batched_tokens: Tokens of one engine step, prompts and new ones together: more
            prefill prompts faster and take more memory.
        max_model_len: Prompt and response tokens together; 0 for the model's own limit.
        kv_cache_gb: Of one engine on CPU; on GPU `gpu_memory_share` decides.
        gpu_memory_share: What an engine may hold of each of its GPUs while it generates: weights,
            what a step needs, and in all the rest the cache.
        engine: Further arguments of vLLM's engine by their own names.
    """

    max_num_seqs: PositiveInt = 256
    # vLLM's own default for an async engine is 2,048, which prefills many prompts in small pieces.
    max_num_batched_tokens: PositiveInt = 8192
    max_model_len: NonNegativeInt = 0
    kv_cache_gb: PositiveFloat = 1.0
    gpu_memory_share: Share = 0.85
    enforce_eager: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: dict[str, Any] = {}

    def _faults(self) -> Iterator[str]:
        for argument in OWN_KEYS.keys() & self.engine.keys():
            yield f"engine must not set {argument}: {OWN_KEYS[argument]} does"
        if self.max_num_batched_tokens < self.max_num_seqs:
            yield (
                f"max_num_batched_tokens must be at least max_num_seqs ({self.max_num_seqs}), got "
                f"{self.max_num_batched_tokens}"
            )


class RolloutConfig(EngineConfig):
    """The vLLM engines and how they sample.

    Attributes:
        temperature: Also divides the trainer's logits, so that both speak of one distribution.
        stop: Strings that end a response; the tokens that spell them stay in it.
        stop_token_ids: Tokens that end a response, beside the end tokens of tokenizer, model and
            chat template.
        ignore_eos: Whether `stop` and `stop_token_ids` alone end a response.
    """

    max_new_tokens: PositiveInt = 256
    temperature: PositiveFloat = 1.0
    stop: list[str] = []
    stop_token_ids: list[NonNegativeInt] = []
    ignore_eos: bool = False

    @property
    def changed_logprobs(self) -> str:
        """Why the recorded log-probabilities are not those of logits over temperature; else empty.

        The probe compares prompts, and does not see it.
        """
        if self.temperature < LEAST_TEMPERATURE:
            return f"rollout.temperature is below {LEAST_TEMPERATURE}, which the engine takes"
        mode = self.engine.get("logprobs_mode", "processed_logprobs")
        if mode != "processed_logprobs":
            return f"rollout.engine.logprobs_mode is {mode}"
        if self.engine.get("logits_processors"):
            return "rollout.engine.logits_processors are given"
        return ""

    @property
    def of_engine(self) -> EngineConfig:
        """The part that an engine is built from, without what is asked with each request."""
        return EngineConfig(**{key: getattr(self, key) for key in EngineConfig.model_fields})
