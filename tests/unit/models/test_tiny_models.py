"""The tiny models of all families: every number in them is random and counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tiny_models import UNBUILDABLE, family_names, tiny


def test_every_family_is_built_or_has_a_reason():
    assert len(family_names()) > 150
    assert set(UNBUILDABLE).isdisjoint(family_names())


@pytest.mark.parametrize("model_type", ["llama", "gemma4", "deepseek_v3", "qwen3_next", "bloom"])
def test_no_weight_or_buffer_is_left_at_0_or_1(model_type):
    model, _ = tiny(model_type)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 4:
            assert tensor.std() > 0.01, name
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 20)[None], use_cache=False).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1
