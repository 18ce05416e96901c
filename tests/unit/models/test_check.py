"""Whatever is wrong with a model's code shows when it is loaded, and what can be mended is."""

from __future__ import annotations

import logging
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from benchmarks.tiny_models import tiny
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention
from rlhf_ray.models.check import settle
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.reward import RewardModel

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_attention():
    attention.register()


def scorer(model_type="llama", **settings):
    return TokenScorer(tiny(model_type, **settings)[0], temperature=1.0, chunk_tokens=16)


def rewarder(model_type="llama", **settings):
    lm, _ = tiny(model_type, auto=AutoModelForSequenceClassification, num_labels=1, **settings)
    return RewardModel(lm)


def config(**settings):
    return ForwardConfig.model_validate(settings)


def patched(module, name, forward):
    """Let `module.name` be `forward(module, what it was, ...)`."""
    before = getattr(module, name)
    setattr(
        module, name, types.MethodType(lambda self, *a, **k: forward(self, before, *a, **k), module)
    )


# Mistakes in a model's code or in ours around it: each makes `module` wrong in its own way.
def packing_is_ignored(module):
    for layer in module.lm.model.layers:
        patched(layer.self_attn, "forward", lambda s, f, *a, packing=None, **k: f(*a, **k))


def logits_are_scaled(module):
    heads_module = module.lm.lm_head
    patched(heads_module, "forward", lambda s, f, x: f(x) * (1.5 if x.shape[1] > 9 else 1.0))


def logits_lose_their_cap(module):
    def capped(self, forward, *arguments, **keywords):
        output = forward(*arguments, **keywords)
        if keywords["input_ids"].any():  # our own calls give no tokens
            output.logits = 2.0 * torch.tanh(output.logits / 2.0)
        return output

    patched(module.lm, "forward", capped)


def dropout_is_a_function(module):
    for layer in module.lm.model.layers:
        patched(layer.mlp, "forward", lambda s, f, x: F.dropout(f(x), 0.1, training=True))


def positions_are_ignored(module):
    patched(
        module.lm.transformer.wpe, "forward", lambda s, f, ids: f(torch.arange(ids.shape[1])[None])
    )


def rotation_goes_by_the_longest(module):
    def forward(self, before, states, position_ids, **keywords):
        stretch = 1 + position_ids.max() // 16
        return before(states, position_ids / stretch, **keywords)

    patched(module.lm.model.rotary_emb, "forward", forward)
    del module.lm.model.rotary_emb._buffers["inv_freq"]  # no mending by sequence
    module.lm.model.rotary_emb.inv_freq = 1.0 / 1e4 ** (torch.arange(0, 32, 2) / 32)


def score_is_of_another_token(module):
    patched(module.lm.score, "forward", lambda s, f, x: f(x.roll(1, dims=0)))


def a_layer_mixes_the_batch(module):
    patched(module.lm.model.layers[1].mlp, "forward", lambda s, f, x: f(x - x.mean((0, 1))))


def a_head_of_another_module(module):
    other = torch.nn.Linear(64, 160, bias=False)
    before = module.lm.forward

    def forward(self, _, *arguments, **keywords):
        own = self.lm_head
        self.lm_head = own if keywords["input_ids"].any() else other
        try:
            return before(*arguments, **keywords)
        finally:
            self.lm_head = own

    patched(module.lm, "forward", forward)


def a_router_jitters(module):
    def forward(self, before, states, *arguments, **keywords):
        return before(states * torch.empty_like(states).uniform_(0.9, 1.1), *arguments, **keywords)

    patched(module.lm.model.layers[0].mlp, "forward", forward)


def a_layer_is_left_out_now_and_then(module):
    def forward(self, before, states, *arguments, **keywords):
        return states if torch.rand(()) < 0.5 else before(states, *arguments, **keywords)

    patched(module.lm.model.layers[0].mlp, "forward", forward)


def padding_is_seen(module):
    patched(module.lm.model.layers[0].mlp, "forward", lambda s, f, x: f(x + x.cumsum(-2).flip(-2)))


MISTAKES = {
    packing_is_ignored: scorer,
    logits_are_scaled: scorer,
    logits_lose_their_cap: scorer,
    dropout_is_a_function: scorer,
    positions_are_ignored: partial(scorer, "gpt2"),
    rotation_goes_by_the_longest: scorer,
    score_is_of_another_token: rewarder,
    a_layer_mixes_the_batch: scorer,
    a_head_of_another_module: scorer,
    a_router_jitters: scorer,
    a_layer_is_left_out_now_and_then: scorer,
    padding_is_seen: scorer,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_planted_mistake_is_found(mistake):
    module = MISTAKES[mistake]()
    settle(module, config(layout="packed"), CPU)
    mistake(module)
    with pytest.raises(ConfigError, match=r"cannot be run with layout packed.*(differ|fails)"):
        settle(module, config(layout="packed"), CPU)


LONG_ROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 16, "long_factor": [4.0] * 16,
    },
}  # fmt: skip
DYNAMIC = {
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}


@pytest.mark.parametrize(("model_type", "settings"), [("phi3", LONG_ROPE), ("llama", DYNAMIC)])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rotation_that_goes_by_the_longest_sees_one_sequence_at_a_time(
    model_type, settings, layout, caplog
):
    module = scorer(model_type, **settings)
    with caplog.at_level(logging.WARNING):
        settle(module, config(layout=layout), CPU)
    lengths = (60, 7, 40, 12) if model_type == "phi3" else (60, 7, 25, 50)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 160, (n,), generator=generator) for n in lengths]
    module.eval()
    with torch.no_grad():
        ours = module.outcomes([row.numpy() for row in rows])
        module.transformer().set_attn_implementation("eager")
        fresh = scorer(model_type, **settings).eval()
        for row, outcome in zip(rows, ours, strict=True):
            fresh.lm.model.rotary_emb = type(fresh.lm.model.rotary_emb)(fresh.lm.config)
            torch.testing.assert_close(outcome, fresh.own_outcome(row[None]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("phimoe", {}),
        (
            "qwen2_moe",
            {
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
        ),
        ("mistral", {}),
    ],
)
def test_windows_beyond_the_checks_sequences_reach_attention(model_type, settings):
    module = scorer(model_type, sliding_window=48, **settings)
    settle(module, config(), CPU)
    assert module.mode.packed is (model_type == "mistral")
    ids_T = torch.randint(3, 160, (120,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (ours,) = module.eval().outcomes([ids_T.numpy()])
        module.transformer().set_attn_implementation("eager")
        torch.testing.assert_close(ours, module.own_outcome(ids_T[None]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("model_type", ["gpt_neo", "gptj", "codegen"])
def test_a_family_that_keeps_its_own_attention_is_not_packed(model_type):
    module = scorer(model_type)
    settle(module, config(), CPU)
    assert str(module.mode) == "layout padded, attention eager"
    with pytest.raises(ConfigError, match="attention of its own"):
        settle(module, config(layout="packed"), CPU)


@pytest.mark.parametrize(("model_type", "seed"), [("llama", 0), ("llama", 9), ("qwen3_moe", 2)])
def test_rounding_of_a_single_score_is_no_fault(model_type, seed):
    module = rewarder(model_type, seed=seed)
    module.bfloat16()
    settle(module, config(layout="packed"), CPU)
