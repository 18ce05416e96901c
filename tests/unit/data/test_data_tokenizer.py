from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.errors import ConfigError

TEMPLATE = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> str:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_a_missing_pad_token_is_set_with_one_line(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="rlhf_ray"):
        tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    [record] = caplog.records
    assert record.getMessage() == f"tokenizer {folder} has no pad token: '</s>' pads"


def test_a_pad_token_that_is_there_stays(
    tmp_path: Path, make_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<s>"
    tokenizer.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="rlhf_ray"):
        assert load_tokenizer(str(tmp_path)).pad_token == "<s>"
    assert not caplog.records


def test_a_chat_template_is_text_or_a_file(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text(TEMPLATE)
    for given in (TEMPLATE, str(file)):
        tokenizer = load_tokenizer(folder, chat_template=given)
        messages = [{"role": "user", "content": "hi"}]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == "[hi]"
    assert load_tokenizer(folder).chat_template is None


def test_a_template_that_is_neither_is_named(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"Jinja text or a readable file, got 'chat\.jinja'"):
        load_tokenizer(folder, chat_template="chat.jinja")


@pytest.mark.parametrize("path", ["", "/no/such/folder", "./nothing", "~/nothing"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(ConfigError, match=f"no tokenizer at {path!r}"):
        load_tokenizer(path)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_an_unreadable_folder_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=f"cannot load a tokenizer from the folder '{tmp_path}'"):
        load_tokenizer(str(tmp_path))


def test_neither_pad_nor_end_token_is_an_error(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="neither a pad token nor an end token"):
        load_tokenizer(str(tmp_path))


def test_stories260k_keeps_its_own_pad_token(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "models/stories260K"))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
