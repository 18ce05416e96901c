"""An export is the model in memory: names, buffers, adapters; and what is not is said by name."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.exports import Outcome, exported, randomize_adapters, tokenizer
from benchmarks.tiny_models import tiny
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.learner import export
from rlhf_ray.learner.export import differences, export_model, write_weights
from rlhf_ray.learner.weights import named_weights, require_mergeable, weight_infos
from rlhf_ray.models import memory
from rlhf_ray.models.load import load_causal_lm, with_adapter

CPU = torch.device("cpu")
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"

# Experts fused in memory, under two names; persistent buffers; a renamed head; tied embeddings; a
# prefix; a routers of their own. All families: `python -m benchmarks.exports`.
FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "gemma4_text", "gpt_neox", "gemma3_text"]


@pytest.mark.parametrize("rank", [0, 4], ids=["plain", "adapted"])
@pytest.mark.parametrize("family", [*FAMILIES, "granitemoe", "olmoe", "llama4_text"])
def test_an_export_loads_as_the_model_under_the_familys_names(family, rank, tmp_path):
    assert exported(family, tmp_path, rank=rank) == Outcome()


@pytest.mark.parametrize("rank", [0, 4], ids=["plain", "adapted"])
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_what_is_announced_is_what_comes(family, rank):
    lm = adapted(tiny(family)[0], rank) if rank else tiny(family)[0]
    announced = [(info.name, info.dtype, info.shape) for info in weight_infos(lm)]
    assert announced == [(name, w.dtype, tuple(w.shape)) for name, w in named_weights(lm)]
    with torch.no_grad():  # peft puts experts back in another order after each pass
        lm(input_ids=torch.arange(3, 9)[None])
    assert announced == [(name, w.dtype, tuple(w.shape)) for name, w in named_weights(lm)]


def test_a_checkpoint_with_the_names_in_memory_leaves_under_the_familys(tmp_path):
    made, _ = tiny("mixtral")
    made.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    names = dict(named_weights(loaded))
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in names
    assert names.keys() == dict(named_weights(made)).keys()


def test_a_held_model_has_buffers_and_experts(tmp_path):
    made, _ = tiny("deepseek_v3")
    made.config.save_pretrained(tmp_path)
    memory.provide(str(tmp_path), {name: w.clone() for name, w in named_weights(made)})
    try:
        loaded = load_causal_lm(ModelConfig(path=str(tmp_path)), device=CPU)
    finally:
        memory.forget(str(tmp_path))
    ours, theirs = loaded.state_dict(), made.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def adapted(model, rank=4, **lora):
    settings = {"path": "tiny", "lora": {"rank": rank, **lora}}
    lm = with_adapter(model, ModelConfig.model_validate(settings)).eval()
    randomize_adapters(lm)
    return lm


@pytest.fixture
def bias_model(tmp_path):
    tokenizer(tmp_path / "tokenizer")
    return tiny("glm4_moe")[0]


def export_to(folder, lm):
    export_model(lm, folder / "export", str(folder / "tokenizer"), write=True)


def test_a_lost_weight_stops_the_export_by_its_name(bias_model, tmp_path, monkeypatch):
    def without_buffer(lm):
        return (entry for entry in named_weights(lm) if entry[0] != BIAS)

    infos = [info for info in weight_infos(bias_model) if info.name != BIAS]
    export_to(tmp_path, bias_model)
    before = (tmp_path / "export/model.safetensors").read_bytes()
    monkeypatch.setattr(export, "named_weights", without_buffer)
    monkeypatch.setattr(export, "weight_infos", lambda lm: infos)
    with pytest.raises(RunError, match=f"is not the model in memory: {BIAS} is missing"):
        export_to(tmp_path, bias_model)
    assert (tmp_path / "export/model.safetensors").read_bytes() == before, "the one before stays"


def test_adapters_that_are_not_merged_stop_the_export(tmp_path, bias_model, monkeypatch):
    lm = adapted(bias_model)
    plain = {name: w.clone() for name, w in named_weights(tiny("glm4_moe")[0])}
    monkeypatch.setattr(export, "named_weights", lambda lm: iter(plain.items()))
    with pytest.raises(RunError, match="its logits are"):
        export_to(tmp_path, lm)


def test_a_lightly_trained_adapter_is_missed_as_well(tmp_path, bias_model, monkeypatch):
    lm = adapted(bias_model)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.02)
    plain = {name: w.clone() for name, w in named_weights(tiny("glm4_moe")[0])}
    monkeypatch.setattr(export, "named_weights", lambda lm: iter(plain.items()))
    with pytest.raises(RunError, match="its logits are"):
        export_to(tmp_path, lm)


def test_a_configuration_of_another_model_stops_it(tmp_path, bias_model, monkeypatch):
    original = export.export_description

    def with_another_scale(lm, folder, tokenizer_path):
        original(lm, folder, tokenizer_path)
        config = folder / "config.json"
        settings = json.loads(config.read_text()) | {"routed_scaling_factor": 2.5}
        config.write_text(json.dumps(settings))

    monkeypatch.setattr(export, "export_description", with_another_scale)
    with pytest.raises(RunError, match="its logits are"):
        export_to(tmp_path, bias_model)


def test_files_that_changed_on_the_way_are_told_apart(tmp_path):
    model, _ = tiny("llama")
    written = write_weights(tmp_path, weight_infos(model), named_weights(model))
    assert differences(tmp_path, written) == []
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 3)
    weights["stranger"] = weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors")
    assert differences(tmp_path, written) == [
        "lm_head.weight is missing",
        "model.layers.0.mlp.up_proj.weight is torch.float32 [2, 3], wanted torch.float32 [96, 64]",
        "model.norm.weight has other values",
        "stranger is not the model's",
    ]


def test_a_large_model_leaves_in_several_files(tmp_path, monkeypatch):
    model, config = tiny("mixtral")
    infos = weight_infos(model)
    written = write_weights(tmp_path, infos, named_weights(model), max_file_bytes=40_000)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 45_000
    assert differences(tmp_path, written) == []
    config.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = model.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in loaded.state_dict().items())


def test_an_export_says_how_far_a_loaded_copy_is(tmp_path, bias_model, caplog):
    with caplog.at_level(logging.INFO, "rlhf_ray.learner.export"):
        export_to(tmp_path, bias_model)
    assert "a loaded copy's logits are 0.0e+00 apart" in caplog.text


def test_how_images_are_read_goes_along(tmp_path, bias_model):
    made, _ = tiny("gemma3")
    made.save_pretrained(tmp_path / "family")
    (tmp_path / "family/preprocessor_config.json").write_text('{"size": 32}')
    export_to(tmp_path, type(made).from_pretrained(tmp_path / "family"))
    assert (tmp_path / "export/preprocessor_config.json").read_text() == '{"size": 32}'
    assert not (tmp_path / "export/processor_config.json").exists()


def test_an_adapter_on_one_use_of_a_tied_weight_is_refused():
    tied, _ = tiny("llama", tie_word_embeddings=True)
    lm = adapted(tied, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ConfigError, match=r"leave out model\.embed_tokens\.weight: it is one wei"):
        require_mergeable(lm)
    untied, _ = tiny("llama", tie_word_embeddings=False)
    require_mergeable(adapted(untied, target_modules=["embed_tokens", "q_proj"]))


@pytest.mark.parametrize(
    ("family", "taken", "left_out"),
    [
        ("falcon", {"query_key_value", "dense_h_to_4h"}, set()),
        ("llama4_text", {"q_proj"}, {"router"}),
    ],
)
def test_matrices_that_are_no_plain_products_get_no_adapter(family, taken, left_out):
    lm = adapted(tiny(family)[0])
    with_one = {
        name.split(".lora_")[0].split(".")[-1]
        for name, _ in lm.named_parameters()
        if "lora_" in name
    }
    assert taken <= with_one
    assert not left_out & with_one


def test_dropout_of_adapters_on_experts_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"model\.lora does not go onto .*dropout"):
        adapted(tiny("mixtral")[0], dropout=0.1)
