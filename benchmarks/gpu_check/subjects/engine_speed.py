"""Is an engine in its actor as fast as vLLM alone, and its cache as large as planned?"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.engines.spec import EngineSpec, engine_arguments
from actors.roles.engines import engine_spec
from benchmarks.gpu_check.machine import used_gb, wait_until_free
from benchmarks.gpu_check.online import (
    ON_ONE_CARD,
    Online,
    cache_tokens_of,
    online_config,
    opened,
    publish_to_all,
    requests,
)
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects.memory import needs_of
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all

# Of vLLM's own rate: an actor sends requests and brings answers, and reads texts out of tokens.
LEAST_SHARE = 0.9
# A plan that promises more tokens than there are is worse than one that promises fewer.
CACHE_AT_LEAST, CACHE_AT_MOST = 0.8, 1.05
PROMPT_TOKENS = 128
WARM_UP = 8
RAW_S = 200.0
GPU_MEMORY_SHARE = 0.5
# What vLLM is told in either case; the rest is its own choice.
RAW = ("model", "tokenizer", "dtype", "max_num_seqs", "max_model_len", "logprobs_mode", "seed")
RAW_ON_GPU = ("gpu_memory_utilization",)
RAW_ON_CPU = (
    "enforce_eager",
    "kv_cache_memory_bytes",
    "enable_chunked_prefill",
    "max_num_batched_tokens",
)


def check_engine(setting: Setting) -> Iterator[Measurement]:
    """All requests at once, seeded and with log-probabilities, first ours, then raw."""
    scale = setting.scale
    config = online_config(
        setting,
        ON_ONE_CARD,
        shape=scale.large,
        rollout={
            "max_new_tokens": scale.new_tokens,
            "max_model_len": PROMPT_TOKENS + 2 * scale.new_tokens,
            "max_num_seqs": scale.requests,
            "gpu_memory_share": GPU_MEMORY_SHARE,
            "enforce_eager": False,
            "ignore_eos": True,
        },
    )
    asked = requests(
        scale.large, num=scale.requests, new_tokens=scale.new_tokens, num_tokens=PROMPT_TOKENS
    )
    before_gb = {card: used_gb(card) for card in setting.cards}
    with opened(setting, config) as online:
        ours = online.run(_rate(online, asked))
        cache_tokens = cache_tokens_of(online)
    wait_until_free(before_gb)
    raw = _raw(setting, engine_spec(config), asked)
    yield Measurement(name="engine", value=ours, unit="tokens/s")
    yield Measurement(name="vLLM alone", value=raw, unit="tokens/s")
    yield Measurement(
        name="engine by vLLM alone",
        value=ours / raw,
        # Of a rehearsal's few tokens, sending them takes most of the time.
        at_least=LEAST_SHARE if scale.on_gpu else None,
    )
    planned = needs_of(config, setting, num_gpus=1)["rollout"].engine
    assert planned is not None
    yield Measurement(
        name="tokens in the cache, planned by measured",
        value=planned.cache_tokens / cache_tokens,
        at_least=CACHE_AT_LEAST,
        at_most=CACHE_AT_MOST,
        note=f"{planned.cache_tokens:,} by {cache_tokens:,}",
    )


async def _rate(online: Online, asked: Sequence[GenerationRequest]) -> float:
    """Tokens a second of the rollout role."""
    rollout = online.roles.rollout
    await publish_to_all(online.roles, 0)
    await sample_all(rollout, asked[:WARM_UP])
    began_s = time.monotonic()
    groups = await sample_all(rollout, asked)
    seconds = time.monotonic() - began_s
    return sum(s.num_response_tokens for group in groups for s in group.summaries_G) / seconds


def _raw(setting: Setting, spec: EngineSpec, asked: Sequence[GenerationRequest]) -> float:
    """Tokens a second.

    Raises:
        RuntimeError: vLLM did not do it; its words are in the output.
    """
    told = engine_arguments(spec)
    names = RAW + (RAW_ON_GPU if setting.scale.on_gpu else RAW_ON_CPU)
    file = setting.folder / "raw.json"
    file.write_text(
        json.dumps(
            {
                "arguments": {name: told[name] for name in names},
                "prompts": [list(request.prompt.token_ids_T) for request in asked],
                "new_tokens": asked[0].max_new_tokens,
            }
        )
    )
    module = "benchmarks.gpu_check.raw_vllm"
    subprocess.run([sys.executable, "-m", module, str(file)], check=True, timeout=RAW_S)
    return float(Path(file.with_suffix(".rate")).read_text())
