"""A prompt that stands once is the same as one before each of its answers, gradients too."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from flash_kernel import flash_kernel_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from benchmarks.tiny_models import tiny
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.models import attention
from rlhf_ray.models.attention import packed_sdpa, varlen_attention
from rlhf_ray.models.batch import build_batch, lay_out
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer, ValueModel
from rlhf_ray.models.modes import checkpoint_layers
from rlhf_ray.models.reward import RewardModel

CPU = torch.device("cpu")
HEADS, KV_HEADS, SIZE = 4, 2, 8


@pytest.fixture(autouse=True)
def own_attention():
    attention.register()


def sequences_of(groups, seed=0):
    """Random ones, shuffled, and how long their prompts are: (prompt, what follows in each)."""
    generator = np.random.default_rng(seed)

    def ids(num):
        return generator.integers(3, 150, size=num).astype(np.int32)

    made = []
    for num_prompt, owns in groups:
        prompt_T = ids(num_prompt)
        made += [(np.concatenate([prompt_T, ids(own)]), num_prompt) for own in owns]
    generator.shuffle(made)
    return [sequence for sequence, _ in made], [num for _, num in made]


# Groups that share a prompt, one whose prompt is not worth it, one of a single sequence, sequences
# that end with their prompt.
GROUPS = [(12, [5, 1, 9]), (7, [0, 8, 3]), (1, [20, 11]), (6, [14]), (9, [0, 0])]

groups = st.lists(
    st.tuples(st.integers(0, 14), st.lists(st.integers(0, 9), min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
).filter(lambda groups: all(prompt + own for prompt, owns in groups for own in owns))


@given(groups, st.integers(0, 99))
def test_every_token_of_every_sequence_has_its_place_and_position(groups, seed):
    sequences_B, prompt_lens_B = sequences_of(groups, seed)
    layout = lay_out(sequences_B, padded=False, device=CPU, prompt_lens_B=prompt_lens_B)
    uses = torch.zeros_like(layout.input_ids).flatten()
    for row, sequence_T in enumerate(sequences_B):
        tokens_T = torch.arange(len(sequence_T))
        places_T = layout.places(torch.full_like(tokens_T, row), tokens_T)
        assert layout.input_ids[0, places_T].tolist() == sequence_T.tolist()
        assert torch.equal(layout.position_ids[0, places_T], tokens_T)
        assert layout.last_B[row] == places_T[-1]
        uses[places_T] += 1
    assert torch.equal(layout.num_uses.flatten(), uses)
    assert uses.min() > 0
    assert layout.packing.num_tokens == len(uses) <= sum(map(len, sequences_B))


def test_what_would_not_save_is_laid_out_as_without():
    sequences_B, prompt_lens_B = sequences_of([(1, [20, 11]), (6, [14]), (3, [40, 40])])
    shared, plain = (
        lay_out(sequences_B, padded=False, device=CPU, prompt_lens_B=some)
        for some in (prompt_lens_B, None)
    )
    assert torch.equal(shared.input_ids, plain.input_ids)
    assert not shared.packing.shared
    assert torch.equal(shared.packing.cu_lens, plain.packing.cu_lens)


def test_a_prompt_of_several_stands_once():
    sequences_B, prompt_lens_B = sequences_of([(30, [5] * 8)])
    layout = lay_out(sequences_B, padded=False, device=CPU, prompt_lens_B=prompt_lens_B)
    assert layout.input_ids.shape == (1, 30 + 8 * 5)
    assert layout.num_uses.tolist() == [[8] * 30 + [1] * 40]
    rectangle = lay_out(sequences_B, padded=True, device=CPU, prompt_lens_B=prompt_lens_B)
    assert rectangle.input_ids.shape == (8, 35)
    assert torch.equal(rectangle.num_uses, rectangle.attention_mask)


def laid_out(states, layout, lens_B):
    """[1, heads, T, size] of each sequence -> [1, heads, N, size]; shared tokens are the same."""
    num_tokens = layout.input_ids.shape[1]
    row = states[0].new_zeros(1, states[0].shape[1], num_tokens, SIZE)
    for number, (state, num) in enumerate(zip(states, lens_B, strict=True)):
        tokens = torch.arange(num)
        row[:, :, layout.places(torch.full_like(tokens, number), tokens)] = state
    return row


@given(
    groups=groups,
    window=st.sampled_from([None, 1, 3, 64]),
    scaling=st.sampled_from([None, 0.5]),
    function=st.sampled_from([packed_sdpa, varlen_attention]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_attention_and_its_gradient_are_those_of_each_sequence_alone(
    groups, window, scaling, function, seed
):
    sequences_B, prompt_lens_B = sequences_of(groups, seed)
    shared, plain = (
        lay_out(sequences_B, padded=False, device=CPU, prompt_lens_B=some)
        for some in (prompt_lens_B, None)
    )
    generator = torch.Generator().manual_seed(seed)
    num_tokens = shared.input_ids.shape[1]
    rows = [
        torch.randn(1, heads, num_tokens, SIZE, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    lens_B = shared.lens_B
    owner_N = torch.repeat_interleave(torch.arange(len(lens_B)), lens_B)
    token_N = torch.cat([torch.arange(n) for n in lens_B])
    to_plain = shared.places(owner_N, token_N)  # where in the shared row each plain token is

    def run(layout, states, slope):
        leaves = [state.clone().requires_grad_() for state in states]
        with flash_kernel_on_cpu():
            output, _ = function(
                torch.nn.Identity(),
                *leaves,
                None,
                scaling=scaling,
                sliding_window=window,
                packing=layout.packing,
            )
            output.backward(slope)
        return output.detach(), [leaf.grad for leaf in leaves]

    slope = torch.randn(1, len(to_plain), HEADS, SIZE, generator=generator, dtype=torch.float64)
    output, gradients = run(plain, [row[:, :, to_plain] for row in rows], slope)
    summed = torch.zeros(1, num_tokens, HEADS, SIZE, dtype=torch.float64)
    summed.index_add_(1, to_plain, slope)
    shared_output, shared_gradients = run(shared, rows, summed)
    torch.testing.assert_close(shared_output[:, to_plain], output, atol=1e-12, rtol=0)
    for ours, theirs in zip(shared_gradients, gradients, strict=True):
        wanted = torch.zeros_like(ours).index_add_(2, to_plain, theirs)
        torch.testing.assert_close(ours, wanted, atol=1e-11, rtol=0)


def gradients_of(module, outcome, weights):
    module.zero_grad()
    (outcome * weights).sum().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


FAMILIES = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 7},
    "deepseek_v3": {"v_head_dim": 20},
    "qwen3_moe": {},
    "gpt2": {},
    "opt": {},
}
EXPERTS = ("deepseek_v3", "qwen3_moe")  # torch has no product of their matrices in float64
KINDS = {
    "policy": lambda family, **settings: TokenScorer(
        tiny(family, **settings)[0], temperature=0.7, chunk_tokens=16
    ),
    "critic": lambda family, **settings: ValueModel(tiny(family, **settings)[0], seed=0),
    "reward model": lambda family, **settings: RewardModel(
        tiny(family, auto=AutoModelForSequenceClassification, num_labels=1, **settings)[0]
    ),
}


def run(module, sequences_B, prompt_lens_B):
    """Log-probabilities, values or scores of all that follows prompts, and what else there is."""
    shares = module.mode.shares_prompts
    if isinstance(module, RewardModel):
        return module(module.lay_out(sequences_B, prompt_lens_B)).scores_B
    batch = build_batch(
        sequences_B,
        [np.arange(num, len(s)) for s, num in zip(sequences_B, prompt_lens_B, strict=True)],
        padded=module.padded,
        device=CPU,
        prompt_lens_B=prompt_lens_B if shares else None,
    )
    assert bool(batch.packing.shared) is shares
    outcome = module(batch)
    return outcome.logprobs_T if isinstance(module, TokenScorer) else outcome


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_and_its_gradient_are_the_same_with_and_without(family, kind):
    module = KINDS[kind](family, **FAMILIES[family])
    settle(module, ForwardConfig(), CPU)
    assert module.mode.shares_prompts, module.mode
    sequences_B, prompt_lens_B = sequences_of(GROUPS)
    module.train()
    if family not in EXPERTS:
        module.double()
    shared = run(module, sequences_B, prompt_lens_B)
    weights = torch.randn(shared.shape, generator=torch.Generator().manual_seed(1))
    ours = gradients_of(module, shared, weights)
    module.use(replace(module.mode, shares_prompts=False))
    plain = run(module, sequences_B, prompt_lens_B)
    theirs = gradients_of(module, plain, weights)
    torch.testing.assert_close(shared, plain, atol=2e-5, rtol=0)
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(ours[name] - theirs[name]).norm() for name in ours]).norm()
    assert difference <= 1e-5 * torch.stack([theirs[name].norm() for name in ours]).norm()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_share_as_well(use_reentrant):
    gradients = []
    for shares in (True, False):
        module = KINDS["policy"]("llama")
        if shares:
            checkpoint_layers(module.lm, use_reentrant=use_reentrant)
        settle(module, ForwardConfig(share_prompts=shares), CPU)
        assert module.mode.shares_prompts is shares
        outcome = run(module.train(), *sequences_of(GROUPS))
        gradients.append(gradients_of(module, outcome, 1.0))
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-4, rtol=1e-5)


def test_experts_are_balanced_over_as_many_tokens_as_without():
    losses = []
    for shares in (True, False):
        lm = tiny("mixtral")[0]
        module = TokenScorer(lm, temperature=1.0, chunk_tokens=16, with_router_loss=True)
        settle(module, ForwardConfig(share_prompts=shares), CPU)
        sequences_B, prompt_lens_B = sequences_of(GROUPS)
        batch = build_batch(
            sequences_B,
            [np.arange(1, len(sequence)) for sequence in sequences_B],
            padded=False,
            device=CPU,
            prompt_lens_B=prompt_lens_B if shares else None,
        )
        losses.append(module(batch).router_loss)
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=1e-6)


def test_a_model_that_does_not_see_a_shared_prompt_has_one_for_each_and_says_so(caplog):
    module = KINDS["policy"]("llama")
    for layer in module.lm.model.layers:
        forward = layer.self_attn.forward

        def blind(*arguments, forward=forward, packing=None, **keywords):
            seen = packing and replace(packing, shared=())
            return forward(*arguments, packing=seen, **keywords)

        layer.self_attn.forward = blind
    with caplog.at_level(logging.WARNING):
        settle(module, ForwardConfig(), CPU)
    assert str(module.mode) == "layout packed, attention packed_sdpa"
    assert f"LlamaForCausalLM runs with {module.mode}: its log-probabilities" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"share_prompts": False},
        {"layout": "padded"},
        {"model": {"lora": {"rank": 2, "dropout": 0.1}}},
    ],
    ids=["by the key", "padded", "with adapters' dropout"],
)
def test_nothing_is_shared_where_it_is_off(settings):
    config = ForwardConfig.model_validate(settings)
    assert not config.shares_prompts
    module = KINDS["policy"]("llama")
    settle(module, config, CPU)
    assert not module.mode.shares_prompts


def test_gradients_of_many_copies_do_not_add_up_in_half_precision():
    """Each of 600 is less than half a unit in the last place of what is summed before the end."""
    layout = lay_out(
        [np.array([1, 2, 3, 4, row], dtype=np.int32) for row in range(600)],
        padded=False,
        device=CPU,
        prompt_lens_B=[4] * 600,
    )
    states = [
        torch.zeros(1, 1, 604, SIZE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    ]
    with flash_kernel_on_cpu():
        output, _ = varlen_attention(torch.nn.Identity(), *states, None, packing=layout.packing)
        output[:, 4:].sum().backward()
    # Each answer sees five keys alike.
    torch.testing.assert_close(
        states[2].grad[0, 0, :4].float(), torch.full((4, SIZE), 600 / 5), rtol=2**-8, atol=0
    )
