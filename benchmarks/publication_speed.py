"""How fast weights reach engines: publication, over copying the same bytes as often.

    python -m benchmarks.publication_speed              # JSON; 2 minutes on 2 cores
    python -m benchmarks.publication_speed --pairs 9
    python -m benchmarks.publication_speed --adapters   # apart and merged: bytes, seconds

100 million parameters in float32 go from a policy to two engines on the CPU, with real Ray,
DeepSpeed and vLLM, from the call until both have acknowledged the version. In turn with that the
same bytes are copied twice, by `memcpy` in one thread, into memory that was written to before.
Exits with 1 where the median ratio is above the goal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from actors.roles.engines import sync_spec
from benchmarks.gpu_check.online import Online, online_config, opened
from benchmarks.gpu_check.scale import REHEARSAL, Shape
from benchmarks.gpu_check.setting import Setting
from rlhf_ray.config.base import laid_over
from rlhf_ray.config.online import GrpoConfig, OnlineConfig
from rlhf_ray.loops.publication import publish

GOAL = 3.0
NUM_ENGINES = 2
# 100.3 million parameters, none of them shared; a vocabulary that vLLM need not pad.
SHAPE = Shape(
    family="llama",
    settings={
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": 9_984,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
)


def publication_speed(pairs: int = 5) -> dict[str, Any]:
    """Publications and copies in turn; seconds of each are in `pairs`."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(scale=REHEARSAL, cards=(), folder=Path(folder))
        with opened(setting, job(setting)) as online:
            num_bytes = online.run(publish(online.roles, 0)).num_bytes
            weights, copy = np.ones(num_bytes, np.uint8), np.ones(num_bytes, np.uint8)
            measured = [
                (publication_s(online, version), copies_s(weights, copy))
                for version in range(1, pairs + 1)
            ]
    ratio = median(ours / theirs for ours, theirs in measured)
    return {
        "ratio": round(ratio, 2),
        "goal": GOAL,
        "holds": ratio <= GOAL,
        "pairs": [[round(ours, 4), round(theirs, 4)] for ours, theirs in measured],
        "bytes": num_bytes,
    }


def adapter_publication(pairs: int = 3) -> dict[str, Any]:
    """Adapters of rank 16 on all linear layers, merged and apart in turn."""
    model, apart = {"lora": {"rank": 16}}, {"adapters": "apart"}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(scale=REHEARSAL, cards=(), folder=Path(folder))
        config = job(setting, policy={"model": model}, publication=apart)
        with opened(setting, config) as online:
            found: dict[str, list[float]] = {"merged": [], "apart": []}
            num_bytes = {}
            for version in range(0, 4 * pairs, 4):
                for way, base in (("merged", ""), ("apart", "below")):
                    connect(online, base)
                    publication_s(online, version)  # with what the adapters change
                    found[way].append(publication_s(online, version + 1))
                    num_bytes[way] = online.roles.policy.sent["num_bytes"]  # type: ignore[attr-defined]
    return {
        "bytes": num_bytes,
        "seconds": {way: round(median(seconds), 4) for way, seconds in found.items()},
        "pairs": [list(pair) for pair in zip(*found.values(), strict=True)],
    }


def connect(online: Online, base: str) -> None:
    """Have adapters published on weights of this name, or merged."""
    policy: Any = online.roles.policy
    spec = replace(sync_spec(online.config), base=base)
    policy.publish_to(policy.engines, spec, probe=policy.probe, limits=policy.limits)


def job(setting: Setting, **sections: Any) -> OnlineConfig:
    """One rank of the policy, two engines."""
    config = online_config(setting, {}, shape=SHAPE, dtype="float32", **sections)
    engines = {"placement": {"rollout": {"ranks": NUM_ENGINES}}}
    return GrpoConfig.model_validate(laid_over(config.model_dump(exclude_unset=True), engines))


def publication_s(online: Online, version: int) -> float:
    """From the call until all engines have the version; the probe comes after that."""
    policy: Any = online.roles.policy
    policy.engines.forget()
    online.run(policy.publish(version))
    return float(policy.sent["seconds"])


def copies_s(weights: np.ndarray[Any, Any], copy: np.ndarray[Any, Any]) -> float:
    """As many copies as there are engines."""
    started_s = time.perf_counter()
    for _ in range(NUM_ENGINES):
        np.copyto(copy, weights)
    return time.perf_counter() - started_s


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--adapters", action="store_true")
    options = parser.parse_args()
    measure = adapter_publication if options.adapters else publication_speed
    measured = measure(options.pairs)
    print(json.dumps(measured))
    return int(not measured.get("holds", True))


if __name__ == "__main__":
    raise SystemExit(main())
