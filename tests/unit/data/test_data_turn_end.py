"""What ends a response: the tokenizer's end token, the model's, and the template's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from test_data_job import model_with

from rlhf_ray.config.online import PpoConfig
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.data.chat.answers import tokenize_answer, tokenize_prompt
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.data.chat.turn_end import end_tokens, turn_end
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.jobs.online import PPO
from rlhf_ray.jobs.sft import SFT

ASKED = [{"role": "user", "content": "q"}]


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(more=families.MARKS)


@pytest.mark.parametrize(
    ("template", "text", "rest"),
    [
        (families.CHATML, "<|im_end|>", "\n"),
        (families.LLAMA3, "<|eot_id|>", ""),
        (families.LLAMA2, " </s>", ""),
        (families.GEMMA, "<end_of_turn>", "\n"),
        (families.QWEN3, "<|im_end|>", "\n"),
        (families.DEEPSEEK, "<｜end▁of▁sentence｜>", ""),
        (families.PHI3, "<|end|>", "\n</s>"),
    ],
)
def test_a_templates_end_is_found_by_rendering(
    tokenizer: Any, template: str, text: str, rest: str
) -> None:
    tokenizer.chat_template = template
    end = turn_end(tokenizer)
    assert end is not None and not end.broken
    assert (end.text, end.rest) == (text, rest)
    assert end.token_id == tokenizer.convert_tokens_to_ids(text.strip())


@pytest.mark.parametrize("template", [families.CHATML, families.PHI3, families.QWEN3])
def test_an_answer_ends_with_its_end_token_and_no_space_behind(
    tokenizer: Any, template: str
) -> None:
    tokenizer.chat_template = template
    end = turn_end(tokenizer)
    assert end is not None
    for is_sampled in (False, True):
        _, answer_ids_T = tokenize_answer(tokenizer, ASKED, "a", is_sampled=is_sampled)
        assert answer_ids_T[-1] == end.token_id


@pytest.mark.parametrize(
    ("template", "text"),
    [("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", "\n\n"), ("", None)],
)
def test_an_end_of_plain_text_is_no_token(tokenizer: Any, template: str, text: str | None) -> None:
    tokenizer.chat_template = template
    end = turn_end(tokenizer)
    assert (end.text if end else None) == text
    assert end is None or (end.token_id is None and not end.broken)
    ends = end_tokens(tokenizer)
    assert ends.ids == (tokenizer.eos_token_id,)
    assert ("no single token" in ends.words) == bool(template)


def test_end_tokens_are_those_of_tokenizer_model_and_template(tokenizer: Any) -> None:
    tokenizer.chat_template = families.CHATML
    ends = end_tokens(tokenizer, [0, 1])
    assert ends.ids == (0, 1, 3)
    assert ends.words == (
        "'<s>' (0: generation_config), '</s>' (1: tokenizer and generation_config), "
        "'<|im_end|>' (3: chat template)"
    )
    assert end_tokens(tokenizer, stop_token_ids=[2, 50]).ids == (1, 2, 3)  # 50 is a letter
    tokenizer.eos_token = None
    assert end_tokens(tokenizer).ids == (3,)
    tokenizer.chat_template = None
    assert end_tokens(tokenizer).words == "no token at all"


def test_a_job_says_once_where_its_responses_end(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer.chat_template = families.CHATML
    folder = Path(model_with(tmp_path / "model", tokenizer))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0]}))
    row = {"prompt": "q", "completion": "a", "answer": "4"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    values = {
        "run_dir": str(tmp_path / "run"),
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "policy": {"model": {"path": str(folder)}},
    }
    online = {
        **values,
        "reward": {"functions": [{"path": "rlhf_ray.rewards.gsm8k:correct_answer"}]},
        "rollout": {"max_new_tokens": 8},
    }
    with caplog.at_level(logging.INFO):
        assert PPO.load(PpoConfig.model_validate(online)).end_token_ids == (0, 1, 3)
        assert SFT.load(SftConfig.model_validate(values)).end_token_ids == (0, 1, 3)
    said = [r.getMessage() for r in caplog.records if "responses end" in r.getMessage()]
    assert len(said) == 2 and all("'<|im_end|>' (3: chat template)" in line for line in said)


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_named_template_whose_tokens_are_missing_is_refused(
    tmp_path: Path, make_tokenizer: Callable[..., Any], name: str
) -> None:
    make_tokenizer(more=families.MARKS).save_pretrained(tmp_path / "has")
    assert load_tokenizer(str(tmp_path / "has"), chat_template=name).chat_template
    families.metaspace_tokenizer(marks=()).save_pretrained(tmp_path / "lacks")
    with pytest.raises(ConfigError, match=r"needs the tokens <\|.*\|>, <\|.*\|>, which .* lacks"):
        load_tokenizer(str(tmp_path / "lacks"), chat_template=name)
    for other in ("alpaca", "mistral", "vicuna", "zephyr"):
        assert load_tokenizer(str(tmp_path / "lacks"), chat_template=other)


@pytest.mark.parametrize(
    ("template", "mark"),
    [
        (families.CHATML, r"<\|im_end\|>"),
        (families.GEMMA, "<end_of_turn>"),
        (families.DEEPSEEK, "<｜end▁of▁sentence｜>"),
    ],
)
def test_an_end_that_several_tokens_would_spell_is_refused(
    tmp_path: Path, template: str, mark: str
) -> None:
    message = f"ends a turn with '{mark}', which is no token of"
    tokenizer = families.metaspace_tokenizer(marks=())
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "template.jinja"
    file.write_text(template)
    for given in (template, str(file)):
        with pytest.raises(ConfigError, match=message):
            load_tokenizer(str(tmp_path), chat_template=given)
    # A tokenizer's own template is in nobody's way until a chat is rendered.
    tokenizer.chat_template = template
    assert end_tokens(tokenizer).ids == (tokenizer.eos_token_id,)
    assert tokenize_prompt(tokenizer, "a text")
    for use in (
        lambda: tokenize_prompt(tokenizer, ASKED),
        lambda: tokenize_answer(tokenizer, ASKED, "a"),
    ):
        with pytest.raises(DataError, match=message):
            use()
