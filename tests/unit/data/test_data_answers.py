"""Prompts keep their tokens whatever follows, and answers theirs whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_ray.config.models import CHAT_TEMPLATE_NAMES
from rlhf_ray.data.chat.answers import tokenize_answer, tokenize_prompt
from rlhf_ray.data.chat.tokenizer import CHAT_TEMPLATES
from rlhf_ray.errors import DataError

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
CHAT_TEMPLATE_ENDS = dict.fromkeys(CHAT_TEMPLATE_NAMES, "</s>") | {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
}
SAID = TEXT.filter(str.strip)


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    """A chat that ends with the user's turn, with or without a system's message."""
    num_turns = 2 * draw(st.integers(0, 2)) + 1
    system = [{"role": "system", "content": draw(SAID)}] if draw(st.booleans()) else []
    roles = ("user", "assistant")
    return [
        *system,
        *({"role": roles[turn % 2], "content": draw(SAID)} for turn in range(num_turns)),
    ]


def test_the_configuration_knows_the_templates_names() -> None:
    assert tuple(CHAT_TEMPLATES) == CHAT_TEMPLATE_NAMES


@pytest.mark.parametrize("name", CHAT_TEMPLATE_NAMES)
@given(prompt=chats(), answer=SAID)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_a_named_template_keeps_a_prompts_tokens_when_an_answer_follows(
    chat_tokenizer: Any, name: str, prompt: list[dict[str, str]], answer: str
) -> None:
    chat_tokenizer.chat_template = CHAT_TEMPLATES[name]
    prompt_ids_T, answer_ids_T = tokenize_answer(chat_tokenizer, prompt, answer)
    assert prompt_ids_T == tokenize_prompt(chat_tokenizer, prompt)
    assert prompt_ids_T == chat_tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=False
    )
    whole = [*prompt, {"role": "assistant", "content": answer}]
    # But for the space that some templates write behind an end token.
    end = CHAT_TEMPLATE_ENDS[name]
    rendered = chat_tokenizer.apply_chat_template(whole, tokenize=False)
    assert rendered.rstrip("\n").endswith(end)
    ended = chat_tokenizer(rendered.rstrip("\n"), add_special_tokens=False)["input_ids"]
    assert prompt_ids_T + answer_ids_T == ended
    begins = prompt_ids_T.count(chat_tokenizer.bos_token_id)
    text = "".join(message["content"] for message in whole)
    assert begins <= 1 + text.count("<s>")


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        (
            "chatml",
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\n",
            "a<|im_end|>",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "a<|eot_id|>",
        ),
        ("zephyr", "<|system|>\ns</s>\n<|user|>\nq</s>\n<|assistant|>\n", "a</s>"),
        ("mistral", "<s>[INST] s\n\nq [/INST]", " a</s>"),
        ("alpaca", "<s>s\n\n### Instruction:\nq\n\n### Response:\n", "a</s>"),
        ("vicuna", "<s>s USER: q ASSISTANT: ", "a</s>"),
    ],
)
def test_named_templates_write_what_their_models_were_taught(
    chat_tokenizer: Any, name: str, prompt: str, answer: str
) -> None:
    chat_tokenizer.chat_template = CHAT_TEMPLATES[name]
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    prompt_ids_T, answer_ids_T = tokenize_answer(chat_tokenizer, chat, "a")
    assert chat_tokenizer.decode(prompt_ids_T) == prompt
    assert chat_tokenizer.decode(answer_ids_T) == answer


@pytest.mark.parametrize("name", CHAT_TEMPLATE_NAMES)
@pytest.mark.parametrize("is_ended", [True, False])
def test_an_answer_goes_on_with_a_turn_that_is_begun(
    chat_tokenizer: Any, name: str, is_ended: bool
) -> None:
    chat_tokenizer.chat_template = CHAT_TEMPLATES[name]
    asked = [{"role": "user", "content": "2 + 2?"}]
    begun = [*asked, {"role": "assistant", "content": "It is"}]
    opened, said = tokenize_answer(chat_tokenizer, begun, " 4", is_ended=is_ended)
    assert opened == tokenize_prompt(chat_tokenizer, begun)
    whole_T = tokenize_answer(chat_tokenizer, asked, "It is 4", is_ended=is_ended)
    assert opened + said == whole_T[0] + whole_T[1]


@given(prompt=SAID, answer=TEXT, bos=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_text_keeps_its_tokens_when_an_answer_follows(
    make_tokenizer: Callable[..., Any], prompt: str, answer: str, bos: bool
) -> None:
    tokenizer = make_tokenizer(bos=bos, merges=(("a", "b"), ("0", "1"), ("ab", "01")))
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, prompt, answer)
    assert prompt_ids_T == tokenize_prompt(tokenizer, prompt) == tokenizer(prompt)["input_ids"]
    assert answer_ids_T[-1] == tokenizer.eos_token_id
    said = answer if answer.endswith("</s>") else answer + "</s>"
    assert tokenizer.decode(prompt_ids_T[bos:] + answer_ids_T) == prompt + said


def test_a_border_that_would_merge_stays_where_it_is(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(merges=(("a", "b"),))
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, "xa", "by")
    assert [tokenizer.decode(prompt_ids_T), tokenizer.decode(answer_ids_T)] == ["xa", "by</s>"]


def test_an_answer_stands_behind_whatever_opens_one(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<think></think>{% endif %}"
    )
    opened, said = tokenize_answer(chat_tokenizer, [{"role": "user", "content": "q"}], "a")
    assert chat_tokenizer.decode(opened) == "q</s><think></think>"
    assert chat_tokenizer.decode(said) == "a</s>"


def test_a_template_that_changes_prompts_is_refused(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content if loop.last else 'x' }}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(DataError, match="renders a prompt differently when an answer follows"):
        tokenize_answer(chat_tokenizer, [{"role": "user", "content": "q"}], "a")


def encoder(kind: str) -> Any:
    """A tokenizer of words that closes every text with a separator, as BERT's and RoBERTa's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    cls, sep = ("[CLS]", "[SEP]") if kind == "bert" else ("<s>", "</s>")
    words = [cls, "<pad>", sep, "<unk>", "how", "are", "you", "fine"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    middle = f"{sep}" if kind == "bert" else f"{sep} {sep}"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {middle} $B {sep}",
        special_tokens=[(cls, 0), (sep, 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token=cls, sep_token=sep, pad_token="<pad>"
    )


@pytest.mark.parametrize(
    ("kind", "answer"), [("bert", "fine [SEP]"), ("roberta", "</s> fine </s>")]
)
def test_an_encoder_gets_its_own_special_tokens_around_both(kind: str, answer: str) -> None:
    tokenizer = encoder(kind)
    prompt_ids_T, answer_ids_T = tokenize_answer(tokenizer, "how are you", "fine")
    assert prompt_ids_T == tokenize_prompt(tokenizer, "how are you")
    assert tokenizer.decode(answer_ids_T) == answer
    assert prompt_ids_T + answer_ids_T == tokenizer("how are you", "fine")["input_ids"]
