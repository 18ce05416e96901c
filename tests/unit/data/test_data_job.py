"""What a job reads before anything starts: prompts, and whether its models share a vocabulary."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import PpoConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.dpo import DPO
from rlhf_ray.jobs.online import PPO

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
    PPO.load(PpoConfig.model_validate({**values, **models}))


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
    assert DPO.load(DpoConfig.model_validate(values)).rows
    small = model_with(tmp_path / "small", None, num_rows=61)
    values["reference"] = {"model": {"path": small}}
    with pytest.raises(ConfigError, match=r"reference\.model\.path must have the policy's"):
        DPO.load(DpoConfig.model_validate(values))


@pytest.mark.parametrize("function", ["gsm8k:correct_answer", "math:equivalent"])
def test_a_reference_that_no_reward_can_read_is_named_by_its_row(
    online: dict[str, Any], caplog: pytest.LogCaptureFixture, function: str
) -> None:
    rows = Path(online["data"]["path"])
    lines = rows.read_text().replace('"answer": 3', '"answer": "\\\\frac{3"').splitlines()
    rows.write_text("\n".join(lines))
    values = {**online, "reward": {"functions": [{"path": f"rlhf_ray.rewards.{function}"}]}}
    with pytest.raises(ConfigError, match=r"data: rewards cannot score 1 of 9 rows: .*:2: "):
        load(values)
    values["data"] = {**online["data"], "on_bad_row": "skip"}
    data = PPO.load(PpoConfig.model_validate(values))
    assert len(data.prompts) == 8
    assert "data.on_bad_row is skip" in caplog.text
    values["data"] = {**online["data"], "columns": {"solution": "answer"}}
    with pytest.raises(ConfigError, match="needs 'answer', which is neither a column"):
        load(values)


def test_a_column_that_a_function_needs_and_no_row_has_is_found_before_anything_starts(
    online: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "raise AssertionError\n\ndef f(completions, truth):\n    ...\n"
    )
    functions = [{"path": f"{tmp_path}/mine.py:f"}]
    values = {**online, "reward": {"functions": functions}}
    with pytest.raises(ConfigError, match=r"data: .*mine\.py:f' needs 'truth', .*are 'answer'"):
        load(values)
    load({**values, "data": {**online["data"], "columns": {"truth": "answer"}}})


def test_kto_refuses_answers_of_one_label(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    rows = [{"prompt": f"{n} + 1 =", "completion": "2", "label": True} for n in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"path": model_with(tmp_path / "policy", make_tokenizer(), num_rows=300)}
    settings = {"data": {"path": str(path)}, "policy": {"model": model}, "loss_type": ["kto"]}
    config = DpoConfig.model_validate({**settings, "run_dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="every answer is labelled good"):
        DPO.load(config)


def test_a_users_function_may_check_rows_too(online: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def even(completions, answer, **_):\n    return [0.0 for _ in completions]\n\n"
        "def check(answer, *, odd, **_):\n"
        "    return [None if n % 2 == odd else f'{n} is not even' for n in answer]\n\n"
        "even.check_rows = check\n"
    )
    (tmp_path / "other.py").write_text("raise AssertionError('imported where it need not be')\n")
    functions = [
        {"path": f"{tmp_path}/other.py:f"},
        {"path": f"{tmp_path}/mine.py:even", "arguments": {"odd": False}},
    ]
    with pytest.raises(ConfigError, match=r"5 of 9 rows: .*:0: even: 1 is not even; .*; .*"):
        load({**online, "reward": {"functions": functions[1:]}})
    for wrong in ("return []", "raise KeyError('x')"):
        (tmp_path / "mine.py").write_text(
            "def even(completions, answer, **_):\n    return []\n\n"
            f"def check(**_):\n    {wrong}\n\neven.check_rows = check\n"
        )
        with pytest.raises(ConfigError, match=r"'even': its check_rows (must return|raised)"):
            load({**online, "reward": {"functions": functions[1:]}})
    (tmp_path / "mine.py").write_text("def even(**_):\n    return []\n")
    load({**online, "reward": {"functions": functions}})


def test_the_log_says_how_many_held_out_prompts_are_taken(
    online: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values = {**online, "eval": {"data": online["data"], "num_prompts": 4}}
    with caplog.at_level(logging.INFO):
        data = PPO.load(PpoConfig.model_validate(values))
    assert len(data.eval_prompts) == 4
    assert "first 4 of 9 held-out prompts (eval.num_prompts)" in caplog.text
