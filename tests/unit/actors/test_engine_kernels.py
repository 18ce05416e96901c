"""Kernels on a CPU give what vLLM's own steps give, and step back where they cannot."""

from __future__ import annotations

import pytest
import torch
from vllm import ir
from vllm.model_executor.layers.activation import SiluAndMul

from actors.engines.cpu_kernels import FusedSiluAndMul, use_fused_kernels


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
        monkeypatch.setattr(op, "_priority_impls", [])
    use_fused_kernels()


def taken(op, *arguments):
    return op.dispatch(*arguments).provider


# A view of a wider matrix, and widths that vectors do not fill.
SHAPES = [(5, 64), (3, 2, 32), (4, 688), (5, 40)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_are_those_of_single_steps(shape, dtype):
    x, residual = torch.randn(2, *shape, dtype=dtype)
    weight = torch.rand(shape[-1], dtype=dtype)
    exact = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    norm, add = ir.ops.rms_norm, ir.ops.fused_add_rms_norm
    expected = norm.impls["native"].impl_fn(x, weight, 1e-6)
    torch.testing.assert_close(norm(x, weight, 1e-6), expected, **exact)
    expected = add.impls["native"].impl_fn(x, residual, weight, 1e-6)
    torch.testing.assert_close(
        add.maybe_inplace(x.clone(), residual.clone(), weight, 1e-6), expected, **exact
    )
    provider = "native" if shape[-1] == 40 else "rlhf_ray"
    assert taken(norm, x, weight, 1e-6) == taken(add, x, residual, weight, 1e-6) == provider


def test_what_a_kernel_does_not_know_is_left_to_vllm():
    x, weight = torch.randn(4, 64), torch.rand(64)
    for arguments in (
        (x, None, 1e-6),
        (x, weight.double(), 1e-6),
        (x, weight, 1e-6, 32),
        (torch.randn(4, 128)[:, :64], weight, 1e-6),
    ):
        assert taken(ir.ops.rms_norm, *arguments) == "native"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gate_is_that_of_single_steps(shape):
    x = torch.randn(*shape)
    gate = FusedSiluAndMul.forward_cpu(None, x)
    torch.testing.assert_close(gate, SiluAndMul.forward_native(x), rtol=1e-5, atol=1e-6)
