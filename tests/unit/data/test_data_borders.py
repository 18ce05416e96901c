"""Prompt and response together read as they were written, wherever the border parts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_ray.data.chat.answers import tokenize_answer, tokenize_prompt, tokenize_sampled
from rlhf_ray.data.chat.borders import decode, response_text
from rlhf_ray.data.chat.tokenizer import load_tokenizer

KINDS = ("bytes", "always", "first", "stories260K")
TEXT = st.text(st.sampled_from("time a\n.<"), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> dict[str, Any]:
    return {
        "bytes": families.byte_tokenizer(bos=True, merges=(("t", "i"), ("m", "e"), ("ti", "me"))),
        "always": families.metaspace_tokenizer(),
        "first": families.metaspace_tokenizer(prepend="first"),
        "stories260K": load_tokenizer(str(shared_data / "models/stories260K")),
    }


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=TEXT, answer=TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_word_that_the_border_parts_stays_joined(
    tokenizers: dict[str, Any], kind: str, prompt: str, answer: str
) -> None:
    tokenizer = tokenizers[kind]
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, prompt, answer)
    assert prompt_ids_T == tokenize_prompt(tokenizer, prompt)
    read = decode(tokenizer, prompt_ids_T + answer_ids_T).removeprefix("<s>").removesuffix("</s>")
    assert read.removeprefix(" " * (kind != "bytes")) in (prompt + answer, (prompt + answer)[1:])
    ends = {tokenizer.eos_token_id}
    assert response_text(tokenizer, prompt_ids_T, answer_ids_T, end_ids=ends) == answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompt", "answer"), [("ti", "me"), ("a ti", "me a"), ("a ", "time")])
def test_the_second_half_of_a_word_begins_with_no_space(
    tokenizers: dict[str, Any], kind: str, prompt: str, answer: str
) -> None:
    tokenizer = tokenizers[kind]
    _, answer_ids_T = tokenize_answer(tokenizer, prompt, answer, is_ended=False)
    assert not tokenizer.convert_ids_to_tokens(answer_ids_T[0]).startswith(("▁", "Ġ"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_keeps_the_space_that_it_begins_with(
    tokenizers: dict[str, Any], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    prompt_ids_T = tokenize_prompt(tokenizer, "a time")
    whole_T = tokenize_prompt(tokenizer, "a time  me")
    assert whole_T[: len(prompt_ids_T)] == prompt_ids_T
    said_T = whole_T[len(prompt_ids_T) :]
    assert response_text(tokenizer, prompt_ids_T, said_T, end_ids=()) == "  me"


def test_special_tokens_are_shown_but_for_the_end(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(more=families.MARKS)
    said_T = tokenizer("<think>\nlet me</think> 4 , 5<|im_end|>")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert response_text(tokenizer, [0], said_T, end_ids={end}) == "<think>\nlet me</think> 4 , 5"
    assert response_text(tokenizer, [0], said_T, end_ids=()).endswith(" 4 , 5<|im_end|>")
    assert response_text(tokenizer, [0], [end], end_ids={end}) == ""


def test_no_space_is_cleaned_away(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    said_T = tokenizer(" I 'm here .")["input_ids"]
    assert response_text(tokenizer, [0], said_T, end_ids=()) == " I 'm here ."


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_character_whose_bytes_the_border_parts_is_the_responses(
    make_tokenizer: Callable[..., Any], cut: int
) -> None:
    tokenizer = make_tokenizer()
    whole_T = tokenizer("é🙂 ok")["input_ids"]  # 2 + 4 + 3 bytes
    before = b"".join([bytes([b]) for b in "é🙂 ok".encode()][:cut]).decode(errors="ignore")
    text = response_text(tokenizer, whole_T[:cut], whole_T[cut:], end_ids=())
    assert before + text == "é🙂 ok"


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_begins_once_and_never_ends(
    make_tokenizer: Callable[..., Any], bos: bool, eos: bool
) -> None:
    tokenizer = make_tokenizer(bos=bos, eos=eos)
    begin = "<s>" * bos
    for prompt in ("q", "<s>q", ""):
        prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, prompt, "a")
        assert prompt_ids_T == tokenize_prompt(tokenizer, prompt)
        assert decode(tokenizer, prompt_ids_T) == (prompt if "<s>" in prompt else begin + prompt)
        assert decode(tokenizer, answer_ids_T) == "a</s>"


def test_a_rendered_text_ends_where_its_last_turn_does(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(bos=True, more=families.MARKS)
    tokenizer.chat_template = families.CHATML
    for answer in ("a<|im_end|>", "a<|im_end|>\n", "a</s>", "a</s> \n"):
        _, answer_ids_T = tokenize_answer(tokenizer, "<s>q", answer)
        assert decode(tokenizer, answer_ids_T) == answer.rstrip()
    _, answer_ids_T = tokenize_answer(tokenizer, "<s>q", "a\n")
    assert decode(tokenizer, answer_ids_T) == "a\n</s>"


def test_behind_a_rendered_prompt_an_answer_ends_as_its_turns_do(
    make_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = make_tokenizer(bos=True, more=families.MARKS)
    tokenizer.chat_template = families.CHATML
    rendered = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for prompt, wanted in ((rendered, end), ("q", tokenizer.eos_token_id)):
        assert tokenize_answer(tokenizer, prompt, "a")[1][-1] == wanted
        _, said_T = tokenize_sampled(tokenizer, prompt, [9, 0], end_ids={0}, is_ended=True)
        assert said_T == [9, wanted]
