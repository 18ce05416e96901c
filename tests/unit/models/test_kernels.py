"""Faster kernels by option: refused where they cannot be, and no other model's business."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import kernels

GPU = torch.device("cuda")


@pytest.fixture
def model():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 11}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **shape))


@pytest.fixture
def liger(monkeypatch):
    """Stands for the package: it exchanges the norm of the model, and of the family."""

    class FastNorm(torch.nn.Module):
        """Liger's."""

    def apply(model, *, rope, rms_norm, fused_linear_cross_entropy):
        assert (rope, rms_norm, fused_linear_cross_entropy) == (False, True, False)
        modeling_llama.LlamaRMSNorm = FastNorm
        model.model.norm = FastNorm()

    def apply_to(model, **parts):
        known = ("rope", "rms_norm", "fused_linear_cross_entropy")
        apply(model, **{name: parts[name] for name in known})

    patch = SimpleNamespace(
        MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": apply}, _apply_liger_kernel_to_instance=apply_to
    )
    transformers = ModuleType("liger_kernel.transformers")
    transformers.monkey_patch = patch
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    return FastNorm


def test_liger_changes_this_model_and_no_other_of_its_family(model, liger):
    before = modeling_llama.LlamaRMSNorm
    kernels.use_liger(model, GPU)
    assert isinstance(model.model.norm, liger)
    assert modeling_llama.LlamaRMSNorm is before


def test_liger_is_refused_without_its_package_or_a_gpu_and_for_what_it_does_not_know(model, liger):
    with pytest.raises(ConfigError, match="liger needs a GPU"):
        kernels.use_liger(model, torch.device("cpu"))
    model.config.model_type = "another"
    with pytest.raises(ConfigError, match="does not know another, but llama"):
        kernels.use_liger(model, GPU)


def test_liger_is_refused_without_its_package(model):
    with pytest.raises(ConfigError, match="needs the package liger-kernel"):
        kernels.use_liger(model, GPU)


def test_layers_are_not_compiled_where_their_weights_come_and_go():
    with pytest.raises(ValueError, match=r"compile needs zero\.stage below 3"):
        LearnerConfig.model_validate({"compile": True, "zero": {"stage": 3}})
