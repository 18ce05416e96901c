"""Of a chat with several turns the assistant's are trained, each to its end token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_families as families
import pytest
from loads import load_answers, load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.borders import decode
from rlhf_ray.data.examples.sft import inside_spans
from rlhf_ray.errors import DataError
from rlhf_ray.types import SftExample

TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "six"},
]
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}BLOCK{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer(more=families.MARKS)


def load(tmp_path: Path, tokenizer: Any, *rows: dict[str, Any], **config: Any) -> list[SftExample]:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_sft(DataConfig(path=str(path), **config), tokenizer, max_length=400).rows


def trained(tokenizer: Any, example: SftExample) -> str:
    return decode(tokenizer, example.token_ids_T[example.trained_T].tolist())


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (families.CHATML, "four<|im_end|>six<|im_end|>"),
        (families.LLAMA3, "four<|eot_id|>six<|eot_id|>"),
        (families.LLAMA2, " four </s> six </s>"),
        (families.GEMMA, "four<end_of_turn>six<end_of_turn>"),
        (families.PHI3, "four<|end|>six<|end|>"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "always", "first"])
def test_every_family_trains_what_was_said_and_its_end(
    tmp_path: Path, tokenizer: Any, template: str, said: str, kind: str
) -> None:
    marks = (*families.MARKS, "<|im_start|>", "<|im_end|>")
    if kind != "bytes":
        tokenizer = families.metaspace_tokenizer(prepend=kind, marks=marks)
    tokenizer.chat_template = template
    [example] = load(tmp_path, tokenizer, {"messages": TURNS})
    # Decoded alone, a first piece loses its space.
    assert trained(tokenizer, example).lstrip() == said.lstrip()
    rendered = tokenizer.apply_chat_template(TURNS, return_dict=False)
    assert example.token_ids_T.tolist() == rendered


THOUGHTFUL = [
    {**turn, "content": f"<think>\nhm {turn['content']}\n</think>\n\n{turn['content']}"}
    if turn["role"] == "assistant"
    else turn
    for turn in TURNS
]
# Analysis before the last answer alone, which ends otherwise than those before it.
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.thinking %}<|assistant|>analysis:{{ m.thinking }}<|end|>{% endif %}"
    "<|assistant|>final:{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|eot_id|>{% else %}<|end|>{% endif %}"
    "{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def parts(tokenizer: Any, example: SftExample) -> list[tuple[bool, str]]:
    """An example's text, parted where tokens begin or cease to be trained."""
    runs: list[tuple[bool, list[int]]] = []
    for token_id, mark in zip(example.token_ids_T.tolist(), example.trained_T, strict=True):
        if not runs or runs[-1][0] != mark:
            runs.append((bool(mark), []))
        runs[-1][1].append(token_id)
    return [(mark, decode(tokenizer, ids)) for mark, ids in runs]


def test_a_turn_that_is_rendered_differently_later_is_an_example_of_its_own(
    tmp_path: Path, tokenizer: Any
) -> None:
    tokenizer.chat_template = families.QWEN3
    first, second = load(tmp_path, tokenizer, {"messages": THOUGHTFUL})
    assert (first.example_id, second.example_id) == ("train:0/0", "train:0/1")
    assert parts(tokenizer, first) == [
        (False, "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<think>\nhm four\n</think>\n\nfour<|im_end|>"),
    ]
    # As while sampling: the answer before it has lost its reasoning.
    assert parts(tokenizer, second) == [
        (
            False,
            "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>\n"
            "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (True, "<think>\nhm six\n</think>\n\nsix<|im_end|>"),
        (False, "\n"),
    ]


def test_reasoning_beside_the_content_is_trained_as_that_within_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    tokenizer.chat_template = HARMONY
    said = {"role": "assistant", "content": "four", "reasoning": "hm"}
    first, second = load(tmp_path, tokenizer, {"messages": [TURNS[0], said, *TURNS[2:]]})
    assert parts(tokenizer, first) == [
        (False, "<|user|>2+2?<|end|><|assistant|>"),
        (True, "analysis:hm<|end|><|assistant|>final:four<|eot_id|>"),
    ]
    before = "<|user|>2+2?<|end|><|assistant|>final:four<|end|>"
    assert parts(tokenizer, second) == [
        (False, before + "<|user|>3+3?<|end|><|assistant|>"),
        (True, "final:six<|eot_id|>"),
    ]
    tokenizer.chat_template = families.CHATML
    with pytest.raises(DataError, match="leaves out the reasoning: that of message 1: write") as no:
        load(tmp_path, tokenizer, {"messages": [TURNS[0], said, *TURNS[2:]]})
    assert "chat_template_kwargs" not in str(no.value)  # it has no variable for it


def test_reasoning_goes_where_the_template_has_a_place_for_it(
    tmp_path: Path, tokenizer: Any
) -> None:
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"}
    tokenizer.chat_template = HARMONY
    for row in (
        {"messages": [TURNS[0], said]},
        {"prompt": [TURNS[0]], "completion": [said]},
        {"messages": [TURNS[0], {**said, "content": "hm</think>four"}]},
    ):
        [example] = load(tmp_path, tokenizer, row)
        assert parts(tokenizer, example) == [
            (False, "<|user|>2+2?<|end|><|assistant|>"),
            (True, "analysis:hm<|end|><|assistant|>final:four<|eot_id|>"),
        ]
    # One without such a place, and without tags of its own, writes what was said.
    tokenizer.chat_template = families.CHATML
    [example] = load(tmp_path, tokenizer, {"messages": [TURNS[0], said]})
    assert trained(tokenizer, example) == "<think>\nhm\n</think>\n\nfour<|im_end|>"


CLOSED = families.QWEN3.removesuffix("{% endif %}") + (
    "{% if VARIABLE is sameas false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize("variable", ["enable_thinking", "thinking", "no_thought"])
@pytest.mark.parametrize(
    "turn", [{"content": "<think>\nhm\n</think>\n\nfour"}, {"content": "four", "reasoning": "hm"}]
)
def test_no_reasoning_is_trained_behind_one_that_is_closed(
    tmp_path: Path, tokenizer: Any, turn: dict[str, str], variable: str
) -> None:
    tokenizer.chat_template = CLOSED.replace("VARIABLE", variable)
    off = {"chat_template_kwargs": {variable: False}}
    [example] = load(tmp_path, tokenizer, {"messages": TURNS[:2], **off})
    assert parts(tokenizer, example)[:2] == [
        (
            False,
            "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        (True, "four<|im_end|>"),
    ]
    row = {"messages": [TURNS[0], {"role": "assistant", **turn}], **off}
    with pytest.raises(DataError, match="closes the reasoning before an answer: mes") as refused:
        load(tmp_path, tokenizer, row)
    line = f"(a column chat_template_kwargs: {{{variable}: true}})"
    assert (line in str(refused.value)) == ("thinking" in variable)


@pytest.mark.parametrize(
    ("opening", "content"),
    [
        ("<think>\n", "<think>\nhm\n</think>\n\nfour"),
        ("<think>\n", "hm\n</think>\n\nfour"),
        ("<think>", "<think>hm\n</think>\n\nfour"),
    ],
)
def test_a_turn_goes_on_with_the_reasoning_that_its_prompt_opens(
    tmp_path: Path, tokenizer: Any, opening: str, content: str
) -> None:
    tokenizer.chat_template = families.DEEPSEEK.replace("<think>\n", opening)
    tokenizer.eos_token = "<｜end▁of▁sentence｜>"
    said = {"role": "assistant", "content": content}
    rows = [
        {"messages": [TURNS[0], said]},
        {"prompt": [TURNS[0]], "completion": [said]},
        {"prompt": [TURNS[0]], "completion": [{**said, "content": "four", "thinking": "hm"}]},
    ]
    for row in rows:
        [example] = load(tmp_path, tokenizer, row)
        assert parts(tokenizer, example) == [
            (False, f"<s><｜User｜>2+2?<｜Assistant｜>{opening}"),
            (True, "hm\n</think>\n\nfour<｜end▁of▁sentence｜>"),
        ]
    first, second = load(tmp_path, tokenizer, {"messages": [*THOUGHTFUL[:3], THOUGHTFUL[3]]})
    assert parts(tokenizer, second)[0][1] == (
        f"<s><｜User｜>2+2?<｜Assistant｜>\n\nfour<｜end▁of▁sentence｜><｜User｜>3+3?<｜Assistant｜>{opening}"
    )
    assert parts(tokenizer, first)[0][1] == f"<s><｜User｜>2+2?<｜Assistant｜>{opening}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "DEEPSEEK",
            "an answer without reasoning: .* '<think>', and message 1 has no .*</think>",
        ),
        ("SINGLE_TURN", "leaves out a message of this chat: message 0, of the role 'user': '2"),
    ],
)
def test_a_template_that_a_chat_does_not_fit_is_refused(
    tmp_path: Path, tokenizer: Any, name: str, message: str
) -> None:
    tokenizer.chat_template = getattr(families, name)
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*" + message):
        load(tmp_path, tokenizer, {"messages": TURNS})


@pytest.mark.parametrize(
    ("variable", "is_told"), [("enable_thinking", True), ("thinking", True), ("no_thought", False)]
)
def test_a_template_that_opens_reasoning_says_how_it_would_not(
    tmp_path: Path, tokenizer: Any, variable: str, is_told: bool
) -> None:
    opening = "{% if VARIABLE is sameas false %}</think>{% else %}<think>\n{% endif %}"
    tokenizer.chat_template = families.CHATML.replace(
        "<|im_start|>assistant\n{%", "<|im_start|>assistant\n" + opening + "{%"
    ).replace("VARIABLE", variable)
    assert opening.replace("VARIABLE", variable) in tokenizer.chat_template
    with pytest.raises(DataError, match="message 1 has no reasoning: write it in") as refused:
        load(tmp_path, tokenizer, {"messages": TURNS[:2]})
    line = f"(a column chat_template_kwargs: {{{variable}: false}})"
    assert (line in str(refused.value)) == is_told
    told = {"messages": TURNS[:2], "chat_template_kwargs": {variable: False}}
    [example] = load(tmp_path, tokenizer, told)
    assert trained(tokenizer, example) == "four<|im_end|>"


def test_an_assistant_may_speak_first_and_twice(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = families.CHATML
    chat = [TURNS[1], TURNS[2], TURNS[3], TURNS[1]]
    [example] = load(tmp_path, tokenizer, {"messages": chat})
    assert parts(tokenizer, example) == [
        (False, "<|im_start|>assistant\n"),
        (True, "four<|im_end|>"),
        (False, "\n<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "six<|im_end|>"),
        (False, "\n<|im_start|>assistant\n"),
        (True, "four<|im_end|>"),
        (False, "\n"),
    ]


def test_an_end_token_that_is_not_special_ends_a_turn_as_well(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|done|>"])
    tokenizer.chat_template = families.CHATML.replace("<|im_end|>", "<|done|>")
    [example] = load(tmp_path, tokenizer, {"messages": TURNS})
    assert trained(tokenizer, example) == "four<|done|>six<|done|>"


@pytest.mark.parametrize(
    "block",
    [
        "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n",
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n",
        "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}",
    ],
)
def test_a_templates_own_marks_reach_to_the_end_token(
    tmp_path: Path, tokenizer: Any, block: str
) -> None:
    tokenizer.chat_template = MARKED.replace("BLOCK", block)
    [example] = load(tmp_path, tokenizer, {"messages": TURNS})
    assert trained(tokenizer, example) == "four<|im_end|>six<|im_end|>"


def test_a_template_with_marks_may_not_lose_reasoning(tmp_path: Path, tokenizer: Any) -> None:
    block = "{% generation %}SAID{% endgeneration %}<|im_end|>\n"
    chat = [TURNS[0], {"role": "assistant", "content": "four", "reasoning_content": "hm"}]
    shown = MARKED.replace(
        "BLOCK", block.replace("SAID", "{{ m.reasoning_content }}{{ m.content }}")
    )
    tokenizer.chat_template = shown
    [example] = load(tmp_path, tokenizer, {"messages": chat})
    assert trained(tokenizer, example) == "hmfour<|im_end|>"
    tokenizer.chat_template = MARKED.replace("BLOCK", block.replace("SAID", "{{ m.content }}"))
    message = r"leaves out the reasoning: that of message 1: .* take {% generation %} out of the "
    with pytest.raises(DataError, match=message):
        load(tmp_path, tokenizer, {"messages": chat})
    [example] = load(
        tmp_path, tokenizer, {"messages": [*chat[:1], {**chat[1], "weight": 0}, *TURNS]}
    )
    assert trained(tokenizer, example) == "four<|im_end|>six<|im_end|>"


def test_no_token_is_across_the_border_of_a_turn(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(more=families.MARKS, merges=(("Ċ", "Ċ"),))
    tokenizer.chat_template = families.CHATML
    turns = [{**turn, "content": "\n" + turn["content"]} for turn in TURNS]
    opened = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    [example] = load(tmp_path, tokenizer, {"messages": turns})
    assert example.token_ids_T[: len(opened)].tolist() == opened
    assert trained(tokenizer, example) == "\nfour<|im_end|>\nsix<|im_end|>"
    whole = decode(tokenizer, example.token_ids_T.tolist())
    assert whole == tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS[:3], "completion": "six"},
        {"prompt": TURNS[:3], "completion": TURNS[3:]},
    ],
)
def test_an_answer_has_the_same_tokens_in_every_job(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any]
) -> None:
    tokenizer.chat_template = families.CHATML
    [example] = load(tmp_path, tokenizer, row)
    data = DataConfig(path=str(tmp_path / "train.jsonl"))
    [answer] = load_answers(data, tokenizer, max_length=400).rows
    assert example.token_ids_T.tolist() == [*answer.prompt_ids_T, *answer.answer_ids_K[0]]
    assert trained(tokenizer, example) == decode(tokenizer, answer.answer_ids_K[0].tolist())
    assert trained(tokenizer, example).endswith("x<|im_end|>")


def test_of_several_turns_behind_a_prompt_the_assistants_are_trained(
    tmp_path: Path, tokenizer: Any
) -> None:
    tokenizer.chat_template = families.CHATML
    [example] = load(tmp_path, tokenizer, {"prompt": TURNS[:1], "completion": TURNS[1:]})
    assert trained(tokenizer, example) == "four<|im_end|>six<|im_end|>"


@pytest.mark.parametrize("text", ["a", "<s>a", "<s>a</s>", "a</s>\n"])
def test_a_text_begins_and_ends_once(
    tmp_path: Path, make_tokenizer: Callable[..., Any], text: str
) -> None:
    tokenizer = make_tokenizer(bos=True, eos=True)
    [example] = load(tmp_path, tokenizer, {"text": text})
    assert decode(tokenizer, example.token_ids_T.tolist()) == "<s>a</s>"


@pytest.mark.parametrize(
    ("offsets", "spans", "inside"),
    [
        ([(0, 2), (2, 4), (4, 5)], [(2, 4)], [False, True, False]),
        ([(0, 2), (2, 4), (4, 5)], [(0, 2), (4, 5)], [True, False, True]),
        ([(0, 2), (2, 2), (2, 4)], [(2, 4)], [False, False, True]),
        ([(0, 1), (1, 3), (1, 3), (3, 4)], [(1, 3)], [False, True, True, False]),
        ([(0, 2), (2, 4)], [], [False, False]),
        ([], [(0, 1)], []),
        ([(0, 3)], [(0, 2)], None),
        ([(0, 3)], [(1, 2)], None),
        ([(0, 2), (2, 6)], [(0, 2), (2, 4)], None),
    ],
)
def test_a_token_is_in_a_span_or_across_its_border(offsets, spans, inside) -> None:
    assert inside_spans(offsets, spans) == inside


def test_turns_behind_what_truncation_keeps_are_not_rendered(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.chat_template = families.CHATML
    chat = TURNS * 400
    rendered: list[int] = []
    apply = type(tokenizer).apply_chat_template

    def counting(self: Any, messages: Any, **how: Any) -> Any:
        rendered.append(len(messages))
        return apply(self, messages, **how)

    monkeypatch.setattr(type(tokenizer), "apply_chat_template", counting)
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    data = DataConfig(path=str(path), over_length="truncate")
    [example] = load_sft(data, tokenizer, max_length=40).rows
    assert parts(tokenizer, example)[0] == (
        False,
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
    )
    assert len(example.token_ids_T) == 40
    # Each turn twice within 40 tokens of at most 22 characters; the whole once.
    assert sum(rendered) < 2 * 300**2 + len(chat)
    assert len(rendered) < 500
