"""What the probe lets pass in bfloat16, and what it catches: measured on models on a CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.weights.probe import EXACT, ROUNDED, gap_of
from benchmarks.tiny_models import VOCAB_SIZE, tiny

TEXTS = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park "
    "with her friends. One day, she saw a big red ball and wanted to play with it.",
    "Tom and Sam were friends. They liked to play with toys and share their snacks. One day they "
    "found a big box in the garden. They opened it and saw a small dog.",
    "Once there was a cat. The cat was very hungry and wanted to eat some fish. It went to the "
    "river but the water was too cold for the cat to swim.",
)


class Probed:
    """A trainer's model, and the gap to engines that hold another."""

    def __init__(self, lm, sequences_B):
        self.lm, self.sequences_B = lm, sequences_B
        self.logprobs_B = self._logprobs(lm)

    @torch.no_grad()
    def _logprobs(self, lm):
        logprobs_B = []
        for ids in self.sequences_B:
            ids_T = torch.tensor(ids)
            logprobs_TV = lm(input_ids=ids_T[None]).logits[0, :-1].float().log_softmax(-1)
            logprobs_B.append(logprobs_TV.gather(-1, ids_T[1:, None])[:, 0].numpy())
        return logprobs_B

    def gap_to(self, lm):
        return gap_of(self.logprobs_B, self._logprobs(lm), [ids[1:] for ids in self.sequences_B])

    @torch.no_grad()
    def gap_after(self, change):
        lm = copy.deepcopy(self.lm)
        change(lm)
        return self.gap_to(lm)


@pytest.fixture(scope="module")
def trained(stories):
    """A language model that was trained, on texts such as it has seen."""
    tokenizer = AutoTokenizer.from_pretrained(stories)
    sequences_B = [[1, *tokenizer(text, add_special_tokens=False).input_ids] for text in TEXTS]
    return Probed(AutoModelForCausalLM.from_pretrained(stories).float().eval(), sequences_B)


@pytest.fixture(scope="module")
def experts():
    """A random mixture of experts."""
    generator = np.random.default_rng(0)
    sequences_B = generator.integers(5, VOCAB_SIZE, size=(4, 40)).tolist()
    return Probed(tiny("qwen3_moe")[0], sequences_B)


@pytest.mark.parametrize("name", ["trained", "experts"])
def test_rounding_to_bfloat16_passes(name, request):
    probed = request.getfixturevalue(name)
    gap = probed.gap_to(copy.deepcopy(probed.lm).to(torch.bfloat16))
    assert ROUNDED.exceeded_by(gap) == ""
    assert EXACT.exceeded_by(gap)


def rolled(weight, dim):
    """As if two shares were in each other's place."""
    weight.copy_(weight.roll(weight.shape[dim] // 2, dim))


def exchanged(one, other):
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def other_layer(lm, number):
    """As if names were off by one."""
    layers = lm.model.layers
    layers[number].load_state_dict(layers[number - 1].state_dict())


def other_head(lm):
    head = copy.deepcopy(lm.lm_head)
    lm.lm_head = head
    head.weight = torch.nn.Parameter(head.weight.clone())
    rolled(head.weight, 0)


WRONG = {
    "a layer that is another's": other_layer,
    "shares of queries exchanged": lambda lm, n: rolled(
        lm.model.layers[n].self_attn.q_proj.weight, 0
    ),
    "shares of keys exchanged": lambda lm, n: rolled(lm.model.layers[n].self_attn.k_proj.weight, 0),
    "shares of the second matrix exchanged": lambda lm, n: rolled(
        lm.model.layers[n].mlp.down_proj.weight, 1
    ),
    "gate and up exchanged": lambda lm, n: exchanged(
        lm.model.layers[n].mlp.gate_proj.weight, lm.model.layers[n].mlp.up_proj.weight
    ),
    "shares of the head exchanged": lambda lm, n: other_head(lm),
}


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_layout_of_one_layer_is_caught(change, number, trained):
    gap = trained.gap_after(lambda lm: change(lm, number))
    assert gap.mean > 2 * ROUNDED.mean
    assert ROUNDED.exceeded_by(gap)


def test_two_experts_in_each_others_place_are_caught(experts):
    def swap(lm):
        for weight in lm.model.layers[0].mlp.experts.parameters():
            exchanged(weight[0], weight[1])

    assert ROUNDED.exceeded_by(experts.gap_after(swap))


def test_a_single_nan_is_caught(trained):
    def spoil(lm):
        lm.model.layers[3].mlp.up_proj.weight[5, 7] = torch.nan

    assert ROUNDED.exceeded_by(trained.gap_after(spoil))


def test_a_step_behind_is_far_below_rounding(trained):
    """No limit can see that: Adam moves a weight by its learning rate."""
    generator = torch.Generator().manual_seed(0)

    def step(lm):
        for weight in lm.parameters():
            weight.add_(1e-6 * torch.randn(weight.shape, generator=generator).sign())

    rounding = trained.gap_to(copy.deepcopy(trained.lm).to(torch.bfloat16))
    assert trained.gap_after(step).largest < rounding.mean / 10
