"""The check that sleeping engines give a card back, on a card that is not there."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.gpu_check.machine import Card
from benchmarks.gpu_check.scale import CARD
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.subjects import card, publication, sleeping
from rlhf_ray.memory import GIB, Memory

CONTEXT_GB, WORKER_GB, WEIGHTS_GB, CACHE_TOKENS = 0.5, 1.0, 2.0, 2_000_000
CACHE_GB = sleeping.cache_bytes(CARD.small, CACHE_TOKENS) / GIB


class FakeCard:
    """What an engine on it holds, and what it forgets; `faults` are what it does wrong."""

    def __init__(self, *faults):
        self.faults, self.is_awake, self.has_weights, self.config = faults, True, True, None
        self.roles = SimpleNamespace(rollout=self, policy=self)
        self.process_gb = CONTEXT_GB

    @property
    def used_gb(self):
        left_gb = CACHE_GB if "keeps its cache" in self.faults else 0.0
        left_gb += 3.0 if "leaks" in self.faults else 0.0
        return CONTEXT_GB + WORKER_GB + (WEIGHTS_GB + CACHE_GB if self.is_awake else left_gb)

    def run(self, work):
        return asyncio.run(work)

    async def sleep(self, level):
        self.is_awake = False
        self.has_weights = level == 1 and "loses its weights" not in self.faults

    async def wake_up(self):
        self.is_awake = True

    async def offload(self):
        pass

    async def publish(self, roles, version):
        self.is_awake = self.has_weights = True
        return SimpleNamespace(num_bytes=WEIGHTS_GB * GIB)


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """`failing(*faults)`: the measurements beyond their limits."""

    def run(*faults):
        fake = FakeCard(*faults)
        first = Card(
            index="0", uuid="GPU-0", name="H100", memory_gb=80.0, used_gb=0.0, driver="580"
        )
        setting = Setting(scale=CARD, cards=(first,), folder=tmp_path)
        need = SimpleNamespace(waiting=Memory(process=int(1.5 * GIB)))
        scored = [np.zeros(4, dtype=np.float32)]
        monkeypatch.setattr(Setting, "shared", lambda self, opener: fake)
        monkeypatch.setattr(sleeping, "publish_to_all", fake.publish)
        monkeypatch.setattr(sleeping, "used_gb", lambda card: fake.used_gb)
        monkeypatch.setattr(sleeping, "needs_of", lambda *_, **__: {"rollout": need})
        monkeypatch.setattr(sleeping, "cache_tokens_of", lambda online: CACHE_TOKENS)
        monkeypatch.setattr(sleeping, "scores", lambda online, some: (scored, scored))
        digest = {"weight": "a"}
        for module in (sleeping, publication):
            monkeypatch.setattr(module, "digests", lambda _: digest if fake.has_weights else {})
        found = list(sleeping.check_sleep(setting))
        assert len(found) == 12
        return [one.name.partition(",")[0] for one in found if not one.is_within]

    return run


@pytest.mark.parametrize(
    ("faults", "seen"),
    [
        ((), []),
        (("keeps its cache",), ["frees of weights and cache", "leaves on the card"]),
        (("leaks",), ["frees of weights and cache", "leaves on the card"]),
    ],
)
def test_what_a_sleeping_engine_keeps_is_seen(failing, faults, seen):
    assert failing(*faults) == [f"level {level} {what}" for level in (1, 2) for what in seen]


def test_weights_that_are_others_after_waking_up_are_seen(failing):
    assert failing("loses its weights") == ["weights that differ after level 1"]


def test_a_torch_without_cuda_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(card.torch.version, "cuda", None)
    with pytest.raises(RuntimeError, match="has no CUDA: install the extra `gpu`"):
        list(card.check_cards(Setting(scale=CARD, cards=(), folder=tmp_path)))
