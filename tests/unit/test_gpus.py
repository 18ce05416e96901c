"""Why torch cannot use a machine's GPUs, in words that name the driver, CUDA and the build."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.gpus import (
    Card,
    Driver,
    TorchBuild,
    cuda_fault,
    read_driver,
    read_torch_build,
    torch_build,
)

H100 = Card(name="NVIDIA H100 80GB HBM3", capability=(9, 0))
T4 = Card(name="Tesla T4", capability=(7, 5))
CUDA13 = TorchBuild(version="2.13.0", cuda=(13, 0))


def driver(*, version="580.95.05", cuda=(13, 0), cards=(H100,)):
    return Driver(version=version, cuda=cuda, cards=cards)


@pytest.mark.parametrize(
    ("build", "there", "said"),
    [
        (torch_build("2.13.0+cpu", None), driver(), "torch 2.13.0+cpu is a build for CPUs"),
        (CUDA13, None, "no NVIDIA driver answers"),
        (
            CUDA13,
            driver(version="570.86.15", cuda=(12, 8)),
            "the NVIDIA driver 570.86.15 knows CUDA up to 12.8, but torch 2.13.0 is built for CUDA "
            "13.0: install a driver for CUDA 13 or newer",
        ),
        (CUDA13, driver(cards=()), "580.95.05 shows no GPU"),
        (
            CUDA13,
            driver(cards=(T4, T4)),
            "Tesla T4 has compute capability 7.5: bfloat16 and the attention kernels need 8.0",
        ),
        (CUDA13, driver(), None),
        (CUDA13, driver(cards=(T4, H100)), None),
        # Any driver of a major version serves any build of it, and newer ones serve older builds.
        (TorchBuild(version="2.14.0", cuda=(13, 2)), driver(cuda=(13, 0)), None),
        (TorchBuild(version="2.9.0", cuda=(12, 8)), driver(cuda=(13, 1)), None),
        (CUDA13, driver(cards=(Card(name="NVIDIA A100", capability=(8, 0)),)), None),
    ],
)
def test_the_fault_is_named(build, there, said):
    fault = cuda_fault(build, there)
    assert fault is None if said is None else said in (fault or "")


def test_the_build_is_read_as_torch_says_it():
    import torch

    assert read_torch_build() == torch_build(torch.__version__, torch.version.cuda)


class NoDriver(Exception):
    """As `pynvml.NVMLError`."""


def nvml(*, starts=True):
    """A machine with two cards behind NVML's calls."""

    def start():
        if not starts:
            raise NoDriver

    return SimpleNamespace(
        NVMLError=NoDriver,
        nvmlInit=start,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: f"card {handle}",
        nvmlDeviceGetCudaComputeCapability=lambda handle: [9, handle],
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13010,
    )


def test_the_driver_is_asked_through_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    cards = tuple(Card(name=f"card {index}", capability=(9, index)) for index in range(2))
    assert read_driver() == driver(cuda=(13, 1), cards=cards)


@pytest.mark.parametrize("module", [nvml(starts=False), None], ids=["no driver", "no package"])
def test_where_none_answers_there_is_none(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert read_driver() is None


def test_a_card_that_is_lost_is_an_error_in_words(monkeypatch):
    module = nvml()

    def lost(index):
        raise NoDriver("GPU is lost")

    module.nvmlDeviceGetHandleByIndex = lost
    monkeypatch.setitem(sys.modules, "pynvml", module)
    with pytest.raises(ConfigError, match="answer for every card, got GPU is lost"):
        read_driver()
