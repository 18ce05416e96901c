"""Telling families in every role: right, or refused in words. `benchmarks/families.py` has all."""

from __future__ import annotations

import pytest

from benchmarks.families import CLASSIFIERS, ROLES, outcome_of

PACKED = "layout packed, attention packed_sdpa, prompts shared"
PADDED = "layout padded, attention packed_sdpa"
OWN = "layout padded, attention eager, with an attention mask"
# Logits that are multiplied, divided, capped, made by a head of more than one part, or described in
# a part of the configuration; sequences that only a rectangle keeps apart; attention of their own;
# dropout of functions.
TELLING = {
    "hyperclovax": PACKED,
    "gemma4": PACKED,
    "modernbert-decoder": PACKED,
    "opt": PACKED,
    "gpt_bigcode": PACKED,
    "cohere": PACKED,
    "falcon_h1": PADDED,
    "recurrent_gemma": PADDED,
    "qwen3_next": PADDED,
    "stablelm": PADDED,
    "nemotron": PADDED,
    "bloom": "layout padded, attention eager",
    "llama4": "layout padded, attention masked_sdpa, with an attention mask",
    "gemma2": OWN,
    "gpt_oss": OWN,
}


@pytest.mark.parametrize("family", TELLING)
def test_a_family_is_right_in_every_role(family):
    for role in ROLES:
        if role == "reward model" and family not in CLASSIFIERS:
            continue
        outcome = outcome_of(family, role, "auto")
        assert outcome.way and outcome.is_right, outcome
        if role == "policy":
            assert outcome.way == TELLING[family]


@pytest.mark.parametrize("family", ["stablelm", "qwen3_next", "gemma2", "bloom"])
def test_who_asks_for_the_wrong_layout_hears_the_right_one(family):
    refusal = outcome_of(family, "policy", "packed").refusal
    assert f"cannot be run with {PACKED}" in refusal
    assert f"it is right with {TELLING[family]}" in refusal


def test_layers_that_need_a_mask_are_refused_in_words():
    refusal = outcome_of("llama4", "policy", "packed").refusal
    assert "some of its layers need an attention mask" in refusal
    assert f"it is right with {TELLING['llama4']}" in refusal


def test_a_family_that_no_layout_suits_is_refused():
    assert "it is right in no other layout either" in outcome_of("cpmant", "policy", "auto").refusal
