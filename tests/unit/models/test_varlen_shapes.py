"""`varlen_attn` by shapes alone: nothing square, no rectangle, no heads repeated."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from benchmarks.tiny_models import tiny
from rlhf_ray.models import attention
from rlhf_ray.models.batch import build_batch, lay_out
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.modes import ForwardMode, checkpoint_layers

CPU = torch.device("cpu")
# Numbers that no other dimension has.
LENGTHS = (11, 37, 23)
NUM_SEQUENCES, LONGEST, NUM_TOKENS = len(LENGTHS), max(LENGTHS), sum(LENGTHS)
HEADS, KV_HEADS, HEAD_SIZE = 16, 2, 40
SHAPES = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_SIZE}
WINDOW = 9
FAMILIES = {"qwen2": {}, "llama": {}, "mistral": {"sliding_window": WINDOW}}


class Recorder(TorchDispatchMode):
    """Shapes of all tensors that a pass makes, and what the kernel was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.kernel_calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.torch_attn._varlen_attn.default:
            self.kernel_calls.append(arguments)
        result = function(*arguments, **(keywords or {}))
        self.shapes |= {
            tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)
        }
        return result


def run(family, *, packed, backward=False):
    """One pass over a model of bfloat16, by shapes alone; what was recorded."""
    attention.register()
    config = tiny(family, **SHAPES, **FAMILIES[family])[1]
    ids_B = [np.ones(n, dtype=np.int32) for n in LENGTHS]
    scored_B = [np.arange(1, n) for n in LENGTHS]
    with FakeTensorMode(allow_non_fake_inputs=True):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        if backward:
            checkpoint_layers(lm, use_reentrant=False)
        module = TokenScorer(lm, temperature=1.0, chunk_tokens=19).train(backward)
        module.use(ForwardMode(packed=packed, attention=attention.VARLEN))
        batch = build_batch(ids_B, scored_B, padded=not packed, device=torch.device("cpu"))
        with torch.set_grad_enabled(backward), Recorder() as recorder:
            scores = module(batch)
            if backward:
                scores.logprobs_T.sum().backward()
    assert scores.logprobs_T.shape == (NUM_TOKENS - NUM_SEQUENCES,)
    return recorder


def is_square(shape):
    return sum(size in (LONGEST, NUM_TOKENS, NUM_SEQUENCES * LONGEST) for size in shape) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("packed", [True, False])
def test_a_pass_makes_nothing_square_and_no_rectangle_of_packed_rows(family, packed, backward):
    recorder = run(family, packed=packed, backward=backward)
    num_rows = 1 if packed else NUM_SEQUENCES
    num_positions = NUM_TOKENS if packed else NUM_SEQUENCES * LONGEST
    assert (num_rows, num_positions // num_rows, 64) in recorder.shapes
    assert not [shape for shape in recorder.shapes if is_square(shape)]
    if packed:
        rectangle = (NUM_SEQUENCES, LONGEST)
        assert not [shape for shape in recorder.shapes if rectangle in pairwise(shape)]

    # A layer; and again in the backward pass, where it is checkpointed.
    assert len(recorder.kernel_calls) == (4 if backward else 2)
    for query, key, value, cu_q, cu_k, max_q, max_k, causal, _, window, *_ in recorder.kernel_calls:
        assert query.shape == (num_positions, HEADS, HEAD_SIZE)
        assert key.shape == value.shape == (num_positions, KV_HEADS, HEAD_SIZE)
        assert {tensor.dtype for tensor in (query, key, value)} == {torch.bfloat16}
        assert cu_q is cu_k and cu_q.dtype == torch.int32 and cu_q.shape == (NUM_SEQUENCES + 1,)
        assert max_q == max_k == LONGEST
        windowed = family == "mistral"
        assert (causal, window) == ((False, [WINDOW - 1, 0]) if windowed else (True, [-1, 0]))


@pytest.mark.parametrize("packed", [True, False])
def test_on_a_gpu_all_that_the_kernel_is_given_is_there(packed):
    """Of a layer alone: without CUDA, PyTorch cannot run a model on what stands for a GPU."""
    layout = lay_out([np.ones(n, dtype=np.int32) for n in LENGTHS], padded=not packed, device=CPU)
    num_rows, num_tokens = layout.input_ids.shape
    with FakeTensorMode(), torch.no_grad(), Recorder() as recorder:
        query, key, value = (
            torch.empty(num_rows, heads, num_tokens, size, device="cuda", dtype=torch.bfloat16)
            for heads, size in ((HEADS, 60), (KV_HEADS, 60), (KV_HEADS, 40))
        )
        packing = layout.packing
        if packing is not None:
            borders = torch.empty(NUM_SEQUENCES + 1, dtype=torch.int32, device="cuda")
            packing = replace(packing, cu_lens=borders)
        output, _ = attention.varlen_attention(
            torch.nn.Identity(), query, key, value, None, packing=packing
        )
    assert output.shape == (num_rows, num_tokens, HEADS, 40)
    ((query, key, value, cu_q, cu_k, max_q, max_k, _, scale, *_),) = recorder.kernel_calls
    states = (query, key, value)
    assert {tensor.device.type for tensor in (output, *states, cu_q, cu_k)} == {"cuda"}
    assert [tensor.shape[1:] for tensor in states] == [(HEADS, 64), (KV_HEADS, 64), (KV_HEADS, 64)]
    assert (max_q, max_k, scale) == (LONGEST, LONGEST, 60**-0.5)
