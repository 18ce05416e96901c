"""Which attention runs where, and what is said where the one asked for does not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention, modes
from rlhf_ray.models.modes import attention_functions, forward_modes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A GPU by its compute capability, and flash-attn's package or one that is called the same."""

    def become(capability=(9, 0), *, flash_attn_2=False):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(modes, "is_flash_attn_2_available", lambda: flash_attn_2)

    become()
    return become


def chosen(device=GPU, **settings):
    return attention_functions(ModelConfig.model_validate(settings), device)


def test_half_precision_on_a_gpu_takes_the_kernel_that_needs_no_package(card):
    assert chosen() == chosen(dtype="bfloat16") == ("varlen_attn", "packed_sdpa")
    card(flash_attn_2=True)
    assert chosen() == ("varlen_attn", "packed_sdpa")


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [(CPU, (9, 0), "auto"), (CPU, (9, 0), "bfloat16"), (GPU, (9, 0), "float32"),
     (GPU, (7, 5), "auto")],
)  # fmt: skip
def test_all_else_takes_sdpa_and_who_asks_for_another_hears_why(card, device, capability, dtype):
    card(capability, flash_attn_2=True)
    assert chosen(device, dtype=dtype) == ("packed_sdpa",)
    assert chosen(device, dtype=dtype, attention="packed_sdpa") == ("packed_sdpa",)
    for name in ("varlen_attn", "flash_attention_2"):
        with pytest.raises(ConfigError) as refused:
            chosen(device, dtype=dtype, attention=name)
        assert str(refused.value) == (
            f"model.attention is {name}, which needs a GPU of compute capability 8.0 or above and "
            "dtype bfloat16; set packed_sdpa or auto"
        )


def test_flash_attention_is_found_as_transformers_finds_it(card, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(  # FlashAttention 4 has the same name, and transformers refuses it as 2
        importlib.util, "find_spec", lambda name, *a: find("json" if name == "flash_attn" else name)
    )
    with pytest.raises(ConfigError, match="package flash-attn, version 2; set varlen_attn"):
        chosen(attention="flash_attention_2")
    card(flash_attn_2=True)
    assert chosen(attention="flash_attention_2") == ("flash_attention_2",)


def test_a_kernel_by_name_is_tried_alone_and_auto_tries_the_next(card):
    def ways(**settings):
        config = ForwardConfig.model_validate({"model": settings})
        return [str(mode) for mode in forward_modes(config, GPU)]

    by_name = ways(attention="varlen_attn")
    assert {way.split(", ")[1] for way in by_name} == {"attention varlen_attn"}
    assert ways()[: len(by_name)] == by_name
    assert ways()[len(by_name)] == "layout packed, attention packed_sdpa, prompts shared"
    assert ways()[-1] == "layout padded, attention eager, with an attention mask"


def test_no_process_takes_cudnns_attention():
    """Importing vLLM turns it off as well: only some roles' processes do."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    attention.register()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_sdpa_on_a_gpu_gets_as_many_heads_of_keys_as_of_queries(monkeypatch):
    """Of kernels that take float32 none has fewer, and the scores would be made whole."""
    calls = []

    def kernel(query, key, value, *, enable_gqa, **keywords):
        calls.append((key.shape, value.shape, enable_gqa))
        return query

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", kernel)
    for device in (GPU, CPU):
        with FakeTensorMode(), torch.no_grad():
            query = torch.empty(1, 4, 7, 8, device=device)
            keys = torch.empty(1, 2, 7, 8, device=device)
            attention.packed_sdpa(torch.nn.Identity(), query, keys, keys, None)
    on_gpu, on_cpu = calls
    assert on_gpu == ((1, 4, 7, 8), (1, 4, 7, 8), False)
    assert on_cpu == ((1, 2, 7, 8), (1, 2, 7, 8), True)
