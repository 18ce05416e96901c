"""Models that do not fit their role, the job's tokens or its texts are refused with the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.dpo import DPO
from rlhf_ray.jobs.online import PPO
from rlhf_ray.jobs.rm import RM
from rlhf_ray.jobs.sft import SFT

NUM_TOKENS = 260


@pytest.fixture
def make(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> Callable[..., str]:
    """A folder with a model's description and a tokenizer of bytes."""

    def make(name: str, kind: str = "llama", generation: Any = None, **settings: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        shape = {"vocab_size": NUM_TOKENS, "hidden_size": 64, "num_attention_heads": 2}
        config = AutoConfig.for_model(kind, **{**shape, "max_position_embeddings": 64, **settings})
        config.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        if generation is not None:
            text = generation if isinstance(generation, str) else json.dumps(generation)
            (folder / "generation_config.json").write_text(text)
        return str(folder)

    return make


@pytest.fixture
def online(tmp_path: Path, make: Callable[..., str]) -> dict[str, Any]:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "12 + 1 ="}) + "\n")
    return {
        "run_dir": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "prompts.jsonl")},
        "policy": {"model": {"path": make("policy")}},
        "reward": {"functions": [{"path": "m:f"}]},
        "rollout": {"max_new_tokens": 8},
    }


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    pair = {"prompt": "12 + 1 =", "chosen": " 13", "rejected": " 3"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    return {"run_dir": str(tmp_path / "run"), "data": {"path": str(tmp_path / "pairs.jsonl")}}


def load(values: dict[str, Any], **sections: Any) -> None:
    PPO.load(PpoConfig.model_validate({**values, **sections}))


def test_what_fits_is_loaded_and_nothing_is_written(
    online: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    data = PPO.load(PpoConfig.model_validate(online))
    DPO.load(DpoConfig.model_validate({**pairs, "policy": online["policy"]}))
    RM.load(RmConfig.model_validate({**pairs, "reward": online["policy"]}))
    assert not Path(online["run_dir"]).exists()
    data.keep_tokenizer(str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["qwen2_vl", "clip"])
def test_a_model_without_a_class_of_its_kind(
    online: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    (tmp_path / "policy/config.json").write_text(json.dumps({"model_type": kind}))
    said = rf"policy.model.path: '.*policy' is of type {kind}, of which transformers \d\S+ has no"
    with pytest.raises(ConfigError, match=f"{said} causal language model"):
        load(online)


def test_an_encoder_with_a_decoder(online: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "policy/config.json").write_text(
        json.dumps({"model_type": "t5", "is_encoder_decoder": True})
    )
    with pytest.raises(ConfigError, match="an encoder with a decoder: a decoder alone is wanted"):
        load(online)


def test_quantized_weights_of_a_hub_are_seen_too(
    pairs: dict[str, Any], make: Callable[..., str]
) -> None:
    model = make("fp8", quantization_config={"quant_method": "fp8"})
    for cls, load_data, role in (
        (SftConfig, SFT.load, "policy"),
        (RmConfig, RM.load, "reward"),
        (DpoConfig, DPO.load, "policy"),
    ):
        with pytest.raises(ConfigError, match=rf"{role}.model.path: .* quantized \(fp8\)"):
            load_data(cls.model_validate({**pairs, role: {"model": {"path": model}}}))


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"eos_token_id": NUM_TOKENS}, "has eos_token_id 260 in its generation_config.json"),
        ({"pad_token_id": -1}, "has pad_token_id -1 in its generation_config.json"),
        ({"num_return_sequences": 4}, "generation_config.json: Greedy methods"),
        ("{", "generation_config.json: .* not a valid JSON"),
    ],
)
def test_a_generation_config_that_cannot_be_used(
    online: dict[str, Any], make: Callable[..., str], generation: Any, said: str
) -> None:
    model = make("other", generation=generation)
    with pytest.raises(ConfigError, match=f"policy.model.path: .*{said}"):
        load(online, policy={"model": {"path": model}})


def test_tokens_that_only_the_tokenizer_knows(
    online: dict[str, Any], tmp_path: Path, make: Callable[..., str]
) -> None:
    from transformers import AutoTokenizer

    path = make("padded")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    tokenizer.save_pretrained(path)
    policy = {"model": {"path": path}}
    load(online, policy=policy)  # known, but not used
    rows = tmp_path / "with.jsonl"
    rows.write_text(json.dumps({"prompt": "see <picture>"}) + "\n")
    said = rf"the row \S*with\S* of the tokenizer has '<picture>' as token {NUM_TOKENS}, but "
    with pytest.raises(ConfigError, match=f"policy.model.path: {said}.* 0 to {NUM_TOKENS - 1} "):
        load(online, policy=policy, data={"path": str(rows)})
    tokenizer.add_special_tokens({"pad_token": "<nothing>"})
    tokenizer.save_pretrained(path)
    with pytest.raises(ConfigError, match="the padding token of the tokenizer has '<nothing>'"):
        load(online, policy=policy)
    scorer = {"model": {"path": path, "max_length": 64}}
    with pytest.raises(ConfigError, match=r"reward.model.path: the padding token"):
        load(online, reward=scorer)


def test_an_ordinary_vocabulary_beyond_the_embedding(
    online: dict[str, Any], make: Callable[..., str]
) -> None:
    with pytest.raises(ConfigError, match=r"the vocabulary of the tokenizer has .* 0 to 99 alone"):
        load(online, policy={"model": {"path": make("small", vocab_size=100)}})


@pytest.mark.parametrize("role", ["value", "reference"])
def test_other_roles_have_room_for_the_longest_sequence(
    online: dict[str, Any], make: Callable[..., str], role: str
) -> None:
    """Prompts of 8 tokens and 8 new ones."""
    load(online, **{role: {"model": {"path": make("enough", max_position_embeddings=16)}}})
    short = {"model": {"path": make("short", max_position_embeddings=15)}}
    said = rf"{role}.model.path: .* takes at most 15 tokens, but .* longest sequence may have 16"
    with pytest.raises(ConfigError, match=said):
        load(online, **{role: short})


def test_positions_that_a_model_stretches_are_no_limit(
    online: dict[str, Any], make: Callable[..., str]
) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 8
    short = {"max_position_embeddings": 15, "rope_parameters": rope}
    load(online, value={"model": {"path": make("stretched", **short)}})


def test_dpos_reference_has_room_too(
    online: dict[str, Any], pairs: dict[str, Any], make: Callable[..., str]
) -> None:
    values = {**pairs, "policy": online["policy"]}
    values["reference"] = {"model": {"path": make("short", max_position_embeddings=10)}}
    with pytest.raises(ConfigError, match=r"reference.model.path: .* takes at most 10 tokens"):
        DPO.load(DpoConfig.model_validate(values))


def test_more_tokens_are_asked_for_than_the_model_takes(
    online: dict[str, Any], tmp_path: Path, pairs: dict[str, Any]
) -> None:
    pair = {"prompt": "1" * 70, "chosen": " 13", "rejected": " 3"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    values = {**pairs, "policy": online["policy"], "max_length": 90}
    with pytest.raises(ConfigError, match=r"policy.model.path: .* takes at most 64 tokens"):
        DPO.load(DpoConfig.model_validate(values))


def test_a_reward_model_has_room_or_is_told_where_to_cut(
    online: dict[str, Any], make: Callable[..., str]
) -> None:
    def scored(path: str, **settings: Any) -> None:
        load(online, reward={"model": {"path": path, **settings}})

    short = make("short", max_position_embeddings=15)
    said = "takes at most 15 tokens, but texts may have 16: set reward.model.max_length"
    with pytest.raises(ConfigError, match=said):
        scored(short)
    scored(short, max_length=15)
    with pytest.raises(ConfigError, match="max_length must be at most the model's 15, got 16"):
        scored(short, max_length=16)
    scored(make("enough", max_position_embeddings=16))
    offset = {"max_position_embeddings": 17, "pad_token_id": 1, "bos_token_id": 0}
    with pytest.raises(ConfigError, match="takes at most 15 tokens"):
        scored(make("roberta", kind="roberta", eos_token_id=2, **offset))
