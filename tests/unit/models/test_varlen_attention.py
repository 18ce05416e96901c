"""`varlen_attn` attends as the family's own attention does; the kernel itself is a float64 one."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from flash_kernel import flash_kernel_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from benchmarks.tiny_models import tiny
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.models import attention, modes
from rlhf_ray.models.attention import packed_sdpa, varlen_attention
from rlhf_ray.models.batch import lay_out
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer, ValueModel
from rlhf_ray.models.modes import checkpoint_layers
from rlhf_ray.models.reward import RewardModel

CPU = torch.device("cpu")
HEADS, KV_HEADS = 4, 2
PACKED = "layout packed, attention varlen_attn, prompts shared"


@pytest.fixture
def kernel(monkeypatch):
    """The kernel on the CPU, and `auto` as on a GPU in half precision; gives the kernel's calls."""
    attention.register()
    monkeypatch.setattr(
        modes, "attention_functions", lambda *_: (attention.VARLEN, attention.PACKED_SDPA)
    )
    with flash_kernel_on_cpu() as calls:
        yield calls


def attention_alone(query, key, value, *, scaling, window):
    """One sequence, float64, written out: [heads, T, size] each."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (key, value))
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])[None, :]
    seen = (distance >= 0) & (distance < (window or math.inf))
    scores = query @ key.transpose(-1, -2) * scaling
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ value


@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=5),
    padded=st.booleans(),
    window=st.sampled_from([None, 1, 3, 13, 64]),
    scaling=st.sampled_from([None, 0.5]),
    sizes=st.sampled_from([(8, 8), (12, 12), (24, 16), (20, 32)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_each_sequence_is_attended_to_alone(lengths, padded, window, scaling, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    size, value_size = sizes
    layout = lay_out([np.ones(n, dtype=np.int32) for n in lengths], padded=padded, device=CPU)
    num_rows, num_tokens = layout.input_ids.shape
    query, key, value = (
        torch.randn(num_rows, num_tokens, heads, width, generator=generator)
        .double()
        .transpose(1, 2)
        for heads, width in ((HEADS, size), (KV_HEADS, size), (KV_HEADS, value_size))
    )
    with flash_kernel_on_cpu():
        output, weights = varlen_attention(
            torch.nn.Identity(),
            query,
            key,
            value,
            None,
            scaling=scaling,
            sliding_window=window,
            packing=layout.packing,
        )
    assert weights is None
    assert output.shape == (num_rows, num_tokens, HEADS, value_size)
    for sequence, start in enumerate(layout.starts_B.tolist()):
        row, begin = divmod(start, num_tokens)
        there = slice(begin, begin + lengths[sequence])
        wanted = attention_alone(
            *(states[row, :, there] for states in (query, key, value)),
            scaling=scaling or size**-0.5,
            window=window,
        )
        torch.testing.assert_close(output[row, there], wanted.transpose(0, 1), atol=1e-12, rtol=0)


def test_no_heads_are_repeated_and_nothing_is_copied(kernel):
    layout = lay_out([np.ones(n, dtype=np.int32) for n in (5, 3)], padded=False, device=CPU)
    states = [torch.randn(1, 8, heads, 16).transpose(1, 2) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    varlen_attention(torch.nn.Identity(), *states, None, packing=layout.packing)
    (call,) = kernel
    assert call.key.shape == call.value.shape == (8, KV_HEADS, 16)
    for name, tensor in zip(("query", "key", "value"), states, strict=True):
        assert getattr(call, name).data_ptr() == tensor.data_ptr()
    assert (call.max_q, call.cum_q.tolist()) == (5, [0, 5, 8])


def test_what_the_kernel_cannot_do_is_refused_in_words(kernel):
    query = torch.randn(1, 2, 4, 8)

    def attend(*states, mask=None, **keywords):
        varlen_attention(torch.nn.Identity(), *states, mask, **keywords)

    with pytest.raises(ValueError, match="varlen_attn takes no attention mask"):
        attend(query, query, query, mask=torch.ones(4, 4))
    for keyword in ({"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"position_bias": query}):
        with pytest.raises(ValueError, match=f"varlen_attn knows nothing of {next(iter(keyword))}"):
            attend(query, query, query, **keyword)
    with pytest.raises(ValueError, match=r"varlen_attn has no dropout, got 0\.1"):
        attend(query, query, query, dropout=0.1)
    large = torch.randn(1, 2, 4, 257)
    with pytest.raises(ValueError, match="varlen_attn takes heads of up to 256, got 257"):
        attend(large, large, large)
    assert not kernel


@pytest.mark.parametrize("function", [varlen_attention, packed_sdpa])
def test_a_kernel_is_never_led_beyond_its_tensors(function, kernel):
    packing = lay_out([np.ones(6, dtype=np.int32)], padded=False, device=CPU).packing
    query, fewer = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 5, 8)
    for states in ((fewer, fewer, fewer), (query, fewer, fewer)):
        with pytest.raises(ValueError, match="takes queries and keys of the same 6 tokens"):
            function(torch.nn.Identity(), *states, None, packing=packing)
    assert not kernel


def sequences(*lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(3, 160, size=n).astype(np.int32) for n in lengths]


def assert_own_outcomes(module, ids_B):
    """As `module` runs and by the family's own forward, eager and one sequence a call."""
    module.eval()
    with torch.no_grad():
        ours_B = module.outcomes(ids_B)
        module.transformer().set_attn_implementation("eager")
        for ours, ids_T in zip(ours_B, ids_B, strict=True):
            own = module.own_outcome(torch.from_numpy(ids_T.astype(np.int64))[None])
            torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)


# Grouped heads; windows in all layers, and in some; scales of a family's own; values of another
# head size than keys; norms of queries and keys.
FAMILIES = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 7},
    "granite": {"attention_multiplier": 0.3},
    "deepseek_v3": {"v_head_dim": 20},
    "qwen3_moe": {},
    "gpt2": {},
    "olmo3": {"sliding_window": 5},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_model_scores_as_its_own_forward_does(family, layout, kernel):
    module = TokenScorer(tiny(family, **FAMILIES[family])[0], temperature=1.0, chunk_tokens=16)
    settle(module, ForwardConfig.model_validate({"layout": layout}), CPU)
    shared = ", prompts shared" if layout == "packed" else ""
    assert str(module.mode) == f"layout {layout}, attention varlen_attn{shared}"
    kernel.clear()
    assert_own_outcomes(module, sequences(7, 40, 1, 23))
    windows = {call.left for call in kernel}
    if "sliding_window" in FAMILIES[family]:
        assert windows == ({4} if family == "mistral" else {4, -1})
    else:
        assert windows == {-1}


def test_critics_and_reward_models_take_the_same_kernel(kernel):
    critic = ValueModel(tiny("qwen2")[0], seed=0)
    rewarder = RewardModel(tiny("qwen2", auto=AutoModelForSequenceClassification, num_labels=1)[0])
    for module in (critic, rewarder):
        settle(module, ForwardConfig(), CPU)
        assert str(module.mode) == PACKED
        kernel.clear()
        assert_own_outcomes(module, sequences(7, 40, 23))
        assert len(kernel) == 2  # a layer


@pytest.mark.parametrize(
    ("family", "changes", "wanted"),
    [
        ("llama", {"head_dim": 264}, "layout packed, attention packed_sdpa, prompts shared"),
        ("stablelm", {}, "layout padded, attention varlen_attn"),
        ("llama4", {}, "layout padded, attention masked_sdpa, with an attention mask"),
        # A window beyond the check's sequences, of which attention is not told.
        (
            "phimoe",
            {"sliding_window": 30},
            "layout padded, attention masked_sdpa, with an attention mask",
        ),
        ("gemma2", {}, "layout padded, attention eager, with an attention mask"),
        ("gpt_oss", {}, "layout padded, attention eager, with an attention mask"),
    ],
)
def test_a_model_that_it_does_not_suit_runs_the_next_way(family, changes, wanted, kernel, caplog):
    module = TokenScorer(tiny(family, **changes)[0], temperature=1.0, chunk_tokens=16)
    with caplog.at_level(logging.WARNING):
        settle(module, ForwardConfig(), CPU)
    assert str(module.mode) == wanted
    assert_own_outcomes(module, sequences(7, 40, 23))
    if "head_dim" in changes:
        assert "varlen_attn takes heads of up to 256, got 264" in caplog.text


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_are_those_of_the_own_forward_checkpointed_or_not(reentrant, layout, kernel):
    lm, _ = tiny("gemma3_text", sliding_window=5)
    if reentrant is not None:
        checkpoint_layers(lm, use_reentrant=reentrant)
        lm.enable_input_require_grads()
    module = TokenScorer(lm, temperature=1.0, chunk_tokens=16)
    settle(module, ForwardConfig.model_validate({"layout": layout}), CPU)
    ids_B = sequences(7, 30, 12)

    module.train()
    kernel.clear()
    torch.cat(module.outcomes(ids_B)).sum().backward()
    assert len(kernel) == len(lm.model.layers) * (1 if reentrant is None else 2)
    ours = {name: parameter.grad for name, parameter in lm.named_parameters()}
    lm.zero_grad()
    module.eval().transformer().set_attn_implementation("eager")
    rows = [torch.from_numpy(ids_T.astype(np.int64))[None] for ids_T in ids_B]
    torch.cat([module.own_outcome(row) for row in rows]).sum().backward()
    for name, parameter in lm.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-4, rtol=1e-5, msg=name)
