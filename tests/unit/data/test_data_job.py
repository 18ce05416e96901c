"""What a job reads before anything starts: prompts, and whether its models share a vocabulary."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.supervised import DpoConfig
from rlhf_ray.data.job import load_dpo_data, load_online_data
from rlhf_ray.errors import ConfigError

MakeModel = Callable[..., Path]


def model_with(folder: Path, tokenizer: Any, *, num_rows: int = 0) -> str:
    """A model's description, with a tokenizer or none."""
    folder.mkdir()
    num_rows = num_rows or len(tokenizer)
    shape = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64}
    AutoConfig.for_model("llama", vocab_size=num_rows, **shape).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def online(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> dict[str, Any]:
    rows = "".join(json.dumps({"prompt": f"{n} + 1 =", "answer": n + 1}) + "\n" for n in range(9))
    (tmp_path / "prompts.jsonl").write_text(rows)
    return {
        "run_dir": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "prompts.jsonl")},
        "policy": {"model": {"path": model_with(tmp_path / "policy", make_tokenizer())}},
        "reward": {"functions": [{"path": "rlhf_ray.rewards.gsm8k:correct_answer"}]},
        "rollout": {"max_new_tokens": 8},
    }


def load(values: dict[str, Any], **roles: dict[str, Any]) -> None:
    models = {role: {"model": model} for role, model in roles.items()}
    load_online_data(PpoConfig.model_validate({**values, **models}))


@pytest.mark.parametrize("role", ["value", "reference"])
def test_another_models_words_are_refused(
    online: dict[str, Any], tmp_path: Path, make_tokenizer: Callable[..., Any], role: str
) -> None:
    policys = make_tokenizer()
    other = make_tokenizer(merges=(("a", "b"),))
    load(online, **{role: {"path": model_with(tmp_path / "same", policys)}})
    load(online, **{role: {"path": model_with(tmp_path / "larger", other)}})
    load(online, **{role: {"path": model_with(tmp_path / "padded", policys, num_rows=320)}})
    swapped = json.loads(other.backend_tokenizer.to_str())
    words = swapped["model"]["vocab"]
    words["!"], words["a"] = words["a"], words["!"]
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(swapped))
    strange = model_with(tmp_path / "strange", other)
    message = rf"{role}\.model\.path must have the policy's vocabulary.*'a' as token 4, .*'!'"
    with pytest.raises(ConfigError, match=message):
        load(online, **{role: {"path": strange}})


def test_tokens_that_were_added_may_differ(
    online: dict[str, Any], tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    renamed = make_tokenizer()
    vocabulary = json.loads(renamed.backend_tokenizer.to_str().replace("<|im_end|>", "<|eot|>"))
    renamed._tokenizer = type(renamed.backend_tokenizer).from_str(json.dumps(vocabulary))
    load(online, value={"path": model_with(tmp_path / "renamed", renamed)})


@pytest.mark.parametrize(("num_rows", "passes"), [(259, False), (260, True), (9000, False)])
def test_without_a_tokenizer_the_embeddings_size_decides(
    online: dict[str, Any], tmp_path: Path, num_rows: int, passes: bool
) -> None:
    critic = {"path": model_with(tmp_path / "critic", None, num_rows=num_rows)}
    if passes:
        load(online, value=critic)
        return
    with pytest.raises(ConfigError, match=f"has {num_rows} tokens, the policy's tokenizer 260"):
        load(online, value=critic)


def test_a_role_that_the_job_does_not_use_is_not_looked_at(online: dict[str, Any]) -> None:
    values = {**online, "algorithm": {"advantage": "grpo", "kl": {"coefficient": 0.0}}}
    load(values, value={"path": "/nowhere"}, reference={"path": "/nowhere"})


def test_dpos_reference_has_the_policys_words_too(online: dict[str, Any], tmp_path: Path) -> None:
    pair = {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    values = {
        "run_dir": online["run_dir"],
        "data": {"path": str(tmp_path / "pairs.jsonl")},
        "policy": online["policy"],
    }
    assert load_dpo_data(DpoConfig.model_validate(values)).rows
    small = model_with(tmp_path / "small", None, num_rows=61)
    values["reference"] = {"model": {"path": small}}
    with pytest.raises(ConfigError, match=r"reference\.model\.path must have the policy's"):
        load_dpo_data(DpoConfig.model_validate(values))


def test_the_log_says_how_many_held_out_prompts_are_taken(
    online: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values = {**online, "eval": {"data": online["data"], "num_prompts": 4}}
    with caplog.at_level(logging.INFO):
        data = load_online_data(PpoConfig.model_validate(values))
    assert len(data.eval_prompts) == 4
    assert "first 4 of 9 held-out prompts (eval.num_prompts)" in caplog.text
