"""A byte-level tokenizer made on the spot, and the folder of real data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chat_families import MORE, byte_tokenizer

CHATML = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return byte_tokenizer


@pytest.fixture
def chat_tokenizer() -> Any:
    tokenizer = byte_tokenizer(bos=True, more=MORE)
    tokenizer.chat_template = CHATML
    return tokenizer
