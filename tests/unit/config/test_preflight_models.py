"""Models that are refused before Ray starts, by what their own files say."""

import json

import pytest
from model_folders import ON_GPU, refused, write_model, write_weights

from rlhf_ray.config.checks.preflight import preflight
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig


def spoil_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def spoil_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def spoil_header(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def spoil_pointer(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"
    (folder / "model.safetensors").write_text(text)


def spoil_all(folder):
    (folder / "model.safetensors").unlink()


def spoil_other_names(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "training_args.bin").write_bytes(b"x")


def spoil_part_of_an_index(folder):
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    weights = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def spoil_a_shard(folder):
    spoil_part_of_an_index(folder)
    (folder / "model-2-of-2.safetensors").write_bytes(b"")


def spoil_adapter_alone(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    write_weights(folder / "adapter_model.safetensors")
    adapter = {"base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


def spoil_adapter_beside(folder):
    (folder / "adapter_config.json").write_text("{}")


def spoil_bin(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_empty, "model.safetensors' is empty"),
        (spoil_cut_short, "bytes, but names"),
        (spoil_header, "is no safetensors file, or cut short"),
        (spoil_pointer, "was not fetched: run git lfs pull there"),
        (spoil_all, "holds no weights (model.safetensors, or its parts and their index)"),
        (spoil_other_names, "holds no weights (model.safetensors"),
        (spoil_part_of_an_index, "lacks model-2-of-2.safetensors, which model.safetensors.index"),
        (spoil_a_shard, "model-2-of-2.safetensors' is empty"),
        (spoil_adapter_alone, "holds an adapter: merge it into org/base"),
        (spoil_adapter_beside, "holds an adapter: merge it into its base model"),
        (spoil_bin, "pytorch_model.bin' is empty"),
    ],
)
def test_weights_that_are_not_there(good, tmp_path, spoil, said):
    spoil(tmp_path / "model")
    assert said in refused(good)


@pytest.mark.parametrize("key", ["text_config", "rope_scaling", "quantization_config"])
@pytest.mark.parametrize("value", ["x", ["x"], 3])
def test_a_section_that_is_none_is_left_to_transformers(good, tmp_path, key, value):
    write_model(tmp_path / "model", **{key: value})
    if key == "quantization_config":
        assert "cannot be trained" in refused(good)
    else:
        preflight(GrpoConfig.model_validate(good))


def test_weights_in_parts_pass(good, tmp_path):
    spoil_part_of_an_index(tmp_path / "model")
    write_weights(tmp_path / "model/model-2-of-2.safetensors")
    preflight(GrpoConfig.model_validate(good))


@pytest.mark.parametrize("head", [b"same", b"else"])
def test_a_head_of_its_own_that_is_said_to_be_tied(good, tmp_path, head):
    write_model(tmp_path / "model", tie_word_embeddings=True)
    tensors = {"model.embed_tokens.weight": b"same", "lm_head.weight": head}
    write_weights(tmp_path / "model/model.safetensors", **tensors)
    if head == b"same":
        preflight(GrpoConfig.model_validate(good))
    else:
        assert "lm_head.weight is not model.embed_tokens.weight: set it to false" in refused(good)
        write_model(tmp_path / "model", tie_word_embeddings=False)
        write_weights(tmp_path / "model/model.safetensors", **tensors)
        preflight(GrpoConfig.model_validate(good))


@pytest.mark.parametrize(
    ("key", "given", "passes"),
    [
        ("pad_token_id", 9, True),
        ("pad_token_id", None, True),
        ("pad_token_id", 10, False),
        ("pad_token_id", -1, False),
        ("bos_token_id", 10, False),
        ("eos_token_id", 99, False),
        ("eos_token_id", [0, 9], True),
        ("eos_token_id", [0, 10], False),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "text_config"])
def test_tokens_beyond_the_embedding(good, tmp_path, key, given, passes, file):
    if file == "text_config":
        write_model(tmp_path / "model", text_config={"vocab_size": 10, key: given}, vocab_size=50)
    else:
        extra = {key: given} if file == "config.json" else {}
        write_model(tmp_path / "model", vocab_size=10, **extra)
        (tmp_path / "model/generation_config.json").write_text(
            json.dumps({key: given} if not extra else {})
        )
    file = "config.json" if file == "text_config" else file
    if passes:
        preflight(GrpoConfig.model_validate(good))
    else:
        wrong = given[-1] if isinstance(given, list) else given
        said = f"has {key} {wrong} in its {file}, but embeddings of the tokens 0 to 9 alone"
        assert f"policy.model.path: '{tmp_path}/model' {said}" in refused(good)


def test_tokens_beyond_the_embedding_of_any_role(good, tmp_path):
    write_model(tmp_path / "other", vocab_size=10, pad_token_id=-1)
    other = {"model": {"path": str(tmp_path / "other")}}
    reward = {**good["reward"], **other}
    settings = {"algorithm": {"advantage": "gae", "kl": {"coefficient": 0.1}}}
    values = {**good, **settings, "value": other, "reference": other, "reward": reward}
    message = refused(values)
    for role in ("value", "reference", "reward"):
        assert f"{role}.model.path: '{tmp_path}/other' has pad_token_id -1" in message


T5 = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
BERT = {"architectures": ["BertForMaskedLM"]}
SCORER = {"architectures": ["LlamaForSequenceClassification"]}


@pytest.mark.parametrize(
    ("changes", "role", "passes"),
    [
        (T5, "policy", False),
        (BERT, "policy", False),
        (SCORER, "policy", False),
        ({"architectures": ["LlamaForCausalLM"]}, "policy", True),
        ({"architectures": []}, "policy", True),
        (SCORER, "reference", False),
        (T5, "value", False),
        (SCORER, "value", True),
        (SCORER, "reward", True),
        (BERT, "reward", True),
    ],
)
def test_a_role_takes_models_of_its_kind(good, tmp_path, changes, role, passes):
    write_model(tmp_path / "other", **changes)
    values = {**good, "algorithm": {"advantage": "gae", "kl": {"coefficient": 0.1}}}
    values[role] = {**values.get(role, {}), "model": {"path": str(tmp_path / "other")}}
    if passes:
        preflight(GrpoConfig.model_validate(values))
    else:
        message = refused(values)
        assert f"{role}.model.path: '{tmp_path}/other' is {changes['architectures'][0]}" in message
        assert "is wanted" in message


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "mxfp4", None])
@pytest.mark.parametrize("cls", [SftConfig, RmConfig, DpoConfig])
def test_quantized_weights_are_not_trained(good, tmp_path, method, cls):
    given = {"bits": 4, **({"quant_method": method} if method else {})}
    write_model(tmp_path / "model", quantization_config=given)
    role = "reward" if cls is RmConfig else "policy"
    values = {"data": good["data"], role: good["policy"]}
    said = f"holds weights that are quantized ({method or 'bitsandbytes'}) and cannot be trained"
    assert said in refused(values, cls=cls)
    lora = {**good["policy"]["model"], "lora": {"rank": 4}}
    values[role] = {"model": lora}
    if method is None:
        preflight(cls.model_validate(values))
    else:
        assert said in refused(values, cls=cls)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "gpus", "passes"),
    [(8, 2, 2, True), (8, 2, 4, True), (12, 8, 6, False), (12, 4, 6, False), (8, 8, 8, True)],
)
def test_tensor_parallelism_and_key_heads(good, tmp_path, heads, kv_heads, gpus, passes):
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64}
    write_model(tmp_path / "model", **shape)
    good["placement"] = {"policy": ON_GPU, "rollout": {"gpus_per_rank": gpus}}
    if passes:
        preflight(GrpoConfig.model_validate(good))
    else:
        assert f"must divide the model's {kv_heads} key and value heads" in refused(good)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1}, 128),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 130}, 128),
        ({"model_type": "bert", "max_position_embeddings": 128}, 128),
        ({"model_type": "gpt2", "n_positions": 128, "max_position_embeddings": None}, 128),
    ],
)
def test_a_reward_models_positions(good, tmp_path, changes, positions):
    changes = {key: value for key, value in changes.items() if value is not None}
    write_model(tmp_path / "rm", **changes)
    if "n_positions" in changes:
        config = json.loads((tmp_path / "rm/config.json").read_text())
        del config["max_position_embeddings"]
        (tmp_path / "rm/config.json").write_text(json.dumps(config))
    for longer in (0, 1):
        model = {"path": str(tmp_path / "rm"), "max_length": positions + longer}
        scored = {**good, "reward": {"model": model}}
        trained = {"data": good["data"], "reward": {"model": {"path": str(tmp_path / "rm")}}}
        trained["max_length"] = positions + longer
        if longer:
            said = f"max_length: must be at most the model's {positions}, got {positions + 1}"
            assert f"reward.model.{said}" in refused(scored)
            assert said in refused(trained, cls=RmConfig)
        else:
            preflight(GrpoConfig.model_validate(scored))
            preflight(RmConfig.model_validate(trained))
