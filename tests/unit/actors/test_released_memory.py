"""What a rank gives back when it releases a model."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import torch

from actors.ranks.hosting import HostingRank


class Copy:
    """What leaves the GPU lies in it."""


def test_the_hosts_memory_of_a_released_model_goes_to_other_processes(monkeypatch):
    copy = Copy()
    held = weakref.ref(copy)
    freed = []
    monkeypatch.setattr(HostingRank, "__init__", lambda self: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.accelerator, "empty_host_cache", lambda: freed.append(held()))
    rank = HostingRank()
    residency = SimpleNamespace(copy=copy)
    rank.learner = SimpleNamespace(residency=residency, close=lambda: None)
    rank.residency = residency
    del copy, residency
    rank.unload()
    assert freed == [None], "once, when nothing lies there any more"
