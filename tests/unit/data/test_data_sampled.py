"""What a policy wrote is shown to a model as it was written, cut off or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from loads import load_labelled, load_pairs, load_rankings, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.answers import tokenize_answer, tokenize_prompt, tokenize_sampled
from rlhf_ray.data.chat.borders import decode, response_text
from rlhf_ray.errors import DataError, RowError

ASKED = [{"role": "user", "content": "q"}]
TEMPLATES = {
    name: getattr(families, name)
    for name in ("CHATML", "LLAMA3", "LLAMA2", "GEMMA", "QWEN3", "DEEPSEEK", "PHI3")
}
RESPONSES = [
    ("<think>\nlet me", False),
    ("<think>\nlet me</think>\n\nfour", False),
    ("<think>\nlet me</think>\n\nfour", True),
    ("<think>let\n\n me </think>four ", True),
    ("  four\n", True),
]


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(more=families.MARKS, merges=(("t", "i"), ("m", "e"), ("ti", "me")))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("text", "is_ended"), RESPONSES)
def test_no_template_rewrites_what_was_sampled(
    tokenizer: Any, name: str, text: str, is_ended: bool
) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    prompt_ids_T, answer_ids_T = tokenize_answer(
        tokenizer, ASKED, text, is_ended=is_ended, is_sampled=True
    )
    assert prompt_ids_T == tokenize_prompt(tokenizer, ASKED)
    said = decode(tokenizer, answer_ids_T)
    lead = " " * (name == "LLAMA2" and not text[0].isspace())
    assert said.startswith(lead + text)
    end = said.removeprefix(lead + text)
    assert (len(tokenizer(end.strip())["input_ids"]) == 1) == is_ended
    assert bool(end) == is_ended


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("text", "is_ended"), RESPONSES)
def test_a_response_in_ones_own_vocabulary_keeps_its_tokens(
    tokenizer: Any, name: str, text: str, is_ended: bool
) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    said_T = tokenizer("ti")["input_ids"] + tokenizer("me" + text)["input_ids"]
    assert len(tokenizer("time")["input_ids"]) == 1
    kept_T = [*said_T, *([tokenizer.eos_token_id] if is_ended else [])]
    prompt_ids_T, answer_ids_T = tokenize_sampled(
        tokenizer, ASKED, kept_T, end_ids=(), is_ended=is_ended
    )
    assert prompt_ids_T == tokenize_prompt(tokenizer, ASKED)
    assert answer_ids_T[: len(said_T)] == said_T
    assert len(answer_ids_T) == len(said_T) + is_ended
    _, of_text_T = tokenize_answer(
        tokenizer, ASKED, f"time{text}", is_ended=is_ended, is_sampled=True
    )
    assert answer_ids_T[-1:] == of_text_T[-1:]


def test_another_policys_answer_gets_the_reasoning_that_is_empty(tokenizer: Any) -> None:
    tokenizer.chat_template = families.QWEN3
    foreign = {"is_sampled": True, "is_foreign": True}
    _, plain_T = tokenize_answer(tokenizer, ASKED, "four", **foreign)
    assert plain_T == tokenize_answer(tokenizer, ASKED, "four")[1]
    for text in ("<think>\nlet me", "<think>\nso</think>\n\nfour"):
        _, answer_ids_T = tokenize_answer(tokenizer, ASKED, text, is_ended=False, **foreign)
        assert decode(tokenizer, answer_ids_T) == text


def test_a_text_prompts_response_keeps_the_end_that_was_sampled(tokenizer: Any) -> None:
    tokenizer.chat_template = families.CHATML
    eos, end = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    other = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for last, kept in ((eos, eos), (end, end), (other, eos)):
        _, answer_ids_T = tokenize_sampled(
            tokenizer, "q", [9, last], end_ids={other}, is_ended=True
        )
        assert answer_ids_T == [9, kept]
    assert tokenize_sampled(tokenizer, "q", [9], end_ids=(), is_ended=True)[1] == [9, eos]
    assert tokenize_sampled(tokenizer, "q", [9], end_ids=(), is_ended=False)[1] == [9]
    assert tokenize_sampled(tokenizer, "q", [eos], end_ids=(), is_ended=True)[1] == [eos]


def test_a_template_may_end_a_turn_by_text(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    said_T = tokenizer(" four")["input_ids"]
    prompt_ids_T, answer_ids_T = tokenize_sampled(
        tokenizer, ASKED, [*said_T, tokenizer.eos_token_id], end_ids=(), is_ended=True
    )
    assert decode(tokenizer, prompt_ids_T + answer_ids_T) == "user: q\n\nassistant: four\n\n"


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_of_a_data_set_is_rendered_by_the_template(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    if name == "DEEPSEEK":  # its own prompts begin reasoning
        with pytest.raises(DataError, match="opens an answer by '<think>', and message 1 has no"):
            tokenize_answer(tokenizer, ASKED, "four")
        return
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, ASKED, "four")
    whole = [*ASKED, {"role": "assistant", "content": "four"}]
    rendered = tokenizer.apply_chat_template(whole, tokenize=False)
    assert rendered.startswith(decode(tokenizer, prompt_ids_T + answer_ids_T))


@pytest.mark.parametrize("name", TEMPLATES)
def test_reasoning_that_a_prompt_begins_is_not_closed(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    begun = [*ASKED, {"role": "assistant", "content": "<think>\nlet me"}]
    opened = decode(tokenizer, tokenize_prompt(tokenizer, begun))
    assert opened.endswith("<think>\nlet me") and "</think>" not in opened
    if name == "DEEPSEEK":
        return
    for is_sampled in (True, False):
        prompt_ids_T, answer_ids_T = tokenize_answer(
            tokenizer, begun, " see</think>\n\n4", is_sampled=is_sampled
        )
        assert prompt_ids_T == tokenize_prompt(tokenizer, begun)
        said = decode(tokenizer, answer_ids_T)
        if is_sampled:
            assert said.startswith(" see</think>\n\n4")
        assert said.split("</think>")[1].strip().startswith("4") and "<think>" not in said


def test_a_template_for_a_single_turn_is_refused_where_there_are_more(tokenizer: Any) -> None:
    tokenizer.chat_template = families.SINGLE_TURN
    _, answer_ids_T = tokenize_answer(tokenizer, ASKED, "four")
    assert decode(tokenizer, answer_ids_T) == "four</s>"
    chat = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "and 3 + 3?"},
    ]
    for use in (
        lambda: tokenize_prompt(tokenizer, chat),
        lambda: tokenize_answer(tokenizer, chat, "six"),
    ):
        with pytest.raises(RowError, match=r"leaves out a message .*: message 0, .*'user"):
            use()
    tokenizer.chat_template = families.QWEN3  # it leaves out reasoning, but no answer
    chat[1]["content"] = "<think>\nso</think>\n\nfour"
    assert "four<|im_end|>" in decode(tokenizer, tokenize_prompt(tokenizer, chat))
    tokenizer.chat_template = families.GEMMA
    with pytest.raises(RowError, match="System role not supported"):
        tokenize_prompt(tokenizer, [{"role": "system", "content": "s"}, *chat])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("text", "is_ended"), RESPONSES)
def test_rows_that_sample_writes_train_what_was_sampled(
    tmp_path: Path, tokenizer: Any, name: str, text: str, is_ended: bool
) -> None:
    """From tokens to text, to a file, and back to the same text behind the same prompt."""
    tokenizer.chat_template = TEMPLATES[name]
    prompt_ids_T = tokenize_prompt(tokenizer, ASKED)
    lead = " " * (name == "LLAMA2" and not text[0].isspace())
    sampled_T = tokenizer(lead + text)["input_ids"]
    said = response_text(tokenizer, prompt_ids_T, sampled_T, end_ids=())
    sides = {"chosen": said, "truncated_chosen": not is_ended}
    other = {"rejected": "<think>\nno", "truncated_rejected": True}
    single = {"prompt": "q", "completion": said, "truncated": not is_ended}
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "q", **sides, **other}) + "\n")
    (tmp_path / "samples.jsonl").write_text(json.dumps(single) + "\n")
    (tmp_path / "kto.jsonl").write_text(json.dumps({**single, "label": True}) + "\n")

    def data(file: str) -> DataConfig:
        return DataConfig(path=str(tmp_path / file), chat=True)

    [example] = load_sft(data("samples.jsonl"), tokenizer, max_length=200).rows
    [pair] = load_pairs(data("pairs.jsonl"), tokenizer, max_length=200).rows
    [ranking] = load_rankings(data("pairs.jsonl"), tokenizer, max_length=200).rows
    [labelled] = load_labelled(data("kto.jsonl"), tokenizer, max_length=200).rows
    answers = [
        example.token_ids_T[example.trained_T],
        pair.answer_ids_K[0],
        ranking.answer_ids_K[0],
        labelled.answer_ids_K[0],
    ]
    assert len({tuple(answer_T.tolist()) for answer_T in answers}) == 1
    assert decode(tokenizer, pair.prompt_ids_T) == decode(tokenizer, prompt_ids_T)
    assert answers[0][: len(sampled_T)].tolist() == sampled_T
    assert (len(answers[0]) > len(sampled_T)) == is_ended
    cut = decode(tokenizer, pair.answer_ids_K[1])
    assert cut.lstrip() == "<think>\nno"
