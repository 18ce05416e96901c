"""Does an engine that sleeps give its card back, and wake up as it was?

Level 1 keeps the weights on the host, level 2 drops them: a publication brings them anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_check.machine import used_gb
from benchmarks.gpu_check.online import cache_tokens_of, on_one_card, probes, publish_to_all
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.scale import Shape
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects.agreement import agreement, dtype_of
from benchmarks.gpu_check.subjects.memory import needs_of
from benchmarks.gpu_check.subjects.publication import changed, digests, scores
from rlhf_ray.memory import GIB
from rlhf_ray.roles.protocols import SleepLevel

# Of weights and cache; the rest is what an allocator rounds up.
LEAST_FREED = 0.95
BFLOAT16_BYTES = 2


def check_sleep(setting: Setting) -> Iterator[Measurement]:
    """At both levels: what is freed, what stays, and the same weights afterwards."""
    online = setting.shared(on_one_card)
    sent = online.run(publish_to_all(online.roles, 0))
    before = digests(online)
    held = sent.num_bytes + cache_bytes(setting.scale.small, cache_tokens_of(online))
    planned = needs_of(online.config, setting, num_gpus=1)["rollout"].waiting
    levels: tuple[SleepLevel, ...] = (1, 2)
    for level in levels:
        awake_gb = used_gb(setting.cards[0])
        online.run(online.roles.rollout.sleep(level))
        asleep_gb = used_gb(setting.cards[0])
        yield Measurement(
            name=f"level {level} frees of weights and cache",
            value=(awake_gb - asleep_gb) * GIB / held,
            at_least=LEAST_FREED,
            note=f"{awake_gb - asleep_gb:.2f} of {held / GIB:.2f} GB",
        )
        yield Measurement(
            name=f"level {level} leaves on the card",
            value=asleep_gb - online.process_gb,
            unit="GB",
            at_most=planned.total / GIB,
        )
        if level == 1:
            online.run(online.roles.rollout.wake_up())
        else:
            online.run(publish_to_all(online.roles, 1))
        yield changed(f"weights that differ after level {level}", before, online)
        ours, theirs = scores(online, probes(setting.scale.small))
        yield from agreement(ours, theirs, dtype_of(setting))
        online.run(online.roles.policy.offload())  # scoring brought it back


def cache_bytes(shape: Shape, num_tokens: int) -> int:
    """Keys and values of so many tokens in bfloat16."""
    settings = shape.settings
    head_size = settings["hidden_size"] // settings["num_attention_heads"]
    width = 2 * settings["num_key_value_heads"] * head_size
    return num_tokens * settings["num_hidden_layers"] * width * BFLOAT16_BYTES
