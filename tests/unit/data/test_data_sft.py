from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loads import load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.errors import DataError
from rlhf_ray.types import SftExample

TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "six"},
]
GENERATION = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}!{% endgeneration %}"
    "{% else %}U:{{ m.content }}{% endif %}\n"
    "{% endfor %}"
)


def load(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    max_length: int = 200,
    **config: Any,
) -> list[SftExample]:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_sft(DataConfig(path=str(path), **config), tokenizer, max_length=max_length).rows


def trained(tokenizer: Any, example: SftExample) -> str:
    return str(tokenizer.decode(example.token_ids_T[example.trained_T]))


@pytest.mark.parametrize("bos", [False, True])
def test_the_completion_and_its_end_are_trained(
    tmp_path: Path, make_tokenizer: Callable[..., Any], bos: bool
) -> None:
    tokenizer = make_tokenizer(bos=bos)
    rows = [{"question": "2+2=", "answer": " 4", "prompt": "not this"}]
    columns = {"prompt": "question", "completion": "answer"}
    [example] = load(tmp_path, rows, tokenizer, columns=columns)
    assert example.example_id == "train:0"
    assert tokenizer.decode(example.token_ids_T) == "<s>" * bos + "2+2= 4</s>"
    assert trained(tokenizer, example) == " 4</s>"


def test_prompt_tokens_are_a_rollouts_even_where_the_border_would_merge(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(merges=(("a", "b"),))
    assert len(tokenizer("ab")["input_ids"]) == 1
    [example] = load(tmp_path, [{"prompt": "xa", "completion": "by"}], tokenizer)
    num_prompt_tokens = len(tokenizer("xa")["input_ids"])
    assert example.token_ids_T[:num_prompt_tokens].tolist() == tokenizer("xa")["input_ids"]
    assert trained(tokenizer, example) == "by</s>"


def test_an_end_token_that_is_there_is_not_doubled(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    [example] = load(tmp_path, [{"prompt": "a", "completion": "b</s>"}], tokenizer)
    assert tokenizer.decode(example.token_ids_T) == "ab</s>"


def test_a_text_is_trained_but_for_its_first_token(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(bos=True)
    [example] = load(tmp_path, [{"text": "Hi"}], tokenizer)
    assert tokenizer.decode(example.token_ids_T) == "<s>Hi</s>"
    assert example.trained_T.tolist() == [False, True, True, True]


def test_assistant_turns_are_trained_up_to_their_end_tokens(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    [example] = load(tmp_path, [{"messages": TURNS}], chat_tokenizer)
    whole = chat_tokenizer.decode(example.token_ids_T)
    assert whole == chat_tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert trained(chat_tokenizer, example) == "four<|im_end|>six<|im_end|>"


def test_a_template_without_end_tokens_ends_turns_as_it_writes_them(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    [example] = load(tmp_path, [{"messages": TURNS}], chat_tokenizer)
    assert trained(chat_tokenizer, example) == "four\n\nsix\n\n"


def test_a_template_may_mark_what_is_trained_itself(tmp_path: Path, chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = GENERATION
    [example] = load(tmp_path, [{"messages": TURNS}], chat_tokenizer)
    assert trained(chat_tokenizer, example) == "four!six!"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS[:3], "completion": TURNS[3:]},
        {"prompt": TURNS[:3], "completion": "six"},
    ],
)
def test_of_a_chat_prompt_only_the_completion_is_trained(
    tmp_path: Path, chat_tokenizer: Any, row: dict[str, Any]
) -> None:
    [example] = load(tmp_path, [row], chat_tokenizer)
    assert chat_tokenizer.decode(example.token_ids_T).count("<|im_start|>") == 4
    assert trained(chat_tokenizer, example) == "six<|im_end|>"


def test_chat_makes_turns_of_strings(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": "2+2?", "completion": "four"}]
    [example] = load(tmp_path, rows, chat_tokenizer, chat=True)
    text = chat_tokenizer.decode(example.token_ids_T)
    assert text + "\n" == chat_tokenizer.apply_chat_template(TURNS[:2], tokenize=False)
    assert trained(chat_tokenizer, example) == "four<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:"
        "{{ m.content if loop.last or m.role == 'user' else '...' }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*leaves out .*: message 1, .*'four'"):
        load(tmp_path, [{"messages": TURNS}], chat_tokenizer)
    [example] = load(tmp_path, [{"messages": TURNS[:2]}], chat_tokenizer)
    assert trained(chat_tokenizer, example) == "four;"


def test_truncating_keeps_the_first_tokens_without_an_end(
    tmp_path: Path, make_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer()
    rows = [
        {"prompt": "ab", "completion": "cd"},
        {"prompt": "ab", "completion": "cdefg"},
        {"prompt": "abcdefgh", "completion": "i"},
    ]
    with caplog.at_level(logging.WARNING):
        examples = load(tmp_path, rows, tokenizer, 5, over_length="truncate")
    assert [tokenizer.decode(example.token_ids_T) for example in examples] == ["abcd</s>", "abcde"]
    [record] = caplog.records
    assert "3 read, 2 kept, 1 truncated; left out: 1 too long" in record.getMessage()


def test_an_example_over_the_limit_is_dropped_or_an_error(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    rows = [{"text": "abc"}, {"text": "abcd"}]
    with pytest.raises(DataError, match=r"train\.jsonl:2: 5 tokens, but max_length allows 4"):
        load(tmp_path, rows, make_tokenizer(), 4, over_length="error")
    examples = load(tmp_path, rows, make_tokenizer(), 4, over_length="drop")
    assert [example.example_id for example in examples] == ["train:0"]
    with pytest.raises(DataError, match="no row of 2 is left; left out: 2 too long"):
        load(tmp_path, rows, make_tokenizer(), 2, over_length="drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"no column 'completion': columns there: 'prompt'"),
        (
            {"prompt": "a", "completion": True},
            "column 'completion' must be a string .*got True",
        ),
        ({"prompt": 4, "completion": "b"}, "column 'prompt' must be a string or a list"),
        ({"prompt": TURNS[:1], "completion": "b"}, "no chat template: set the model's"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(
    tmp_path: Path, make_tokenizer: Callable[..., Any], row: dict[str, Any], message: str
) -> None:
    rows = [{"prompt": "a", "completion": "b"}, row]
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*{message}"):
        load(tmp_path, rows, make_tokenizer())


def test_bad_chats_are_named_by_file_and_line(tmp_path: Path, chat_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"1 no message of the role 'assistant' .*jsonl:1\)"):
        load(tmp_path, [{"messages": TURNS[:1]}], chat_tokenizer)
    with pytest.raises(DataError, match=r"train\.jsonl:1: wrong type: message 0 of column"):
        load(tmp_path, [{"messages": [{"from": "gpt"}]}], chat_tokenizer)
    chat_tokenizer.chat_template = GENERATION.replace("{{ m.content }}!", "")
    with pytest.raises(DataError, match=r"train\.jsonl:1: no token to train"):
        load(tmp_path, [{"messages": TURNS}], chat_tokenizer)


def test_unknown_columns_are_listed(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    message = (
        r"train\.jsonl:1: no known format has these columns: there are 'input', 'output'; examples "
        r"need .*: set data\.columns: \{prompt: input, completion: output\}$"
    )
    with pytest.raises(DataError, match=message):
        load(tmp_path, [{"input": "a", "output": "b"}], make_tokenizer())


def test_a_tokenizer_without_end_token_is_refused(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end token"):
        load(tmp_path, [{"text": "a"}], tokenizer)


def test_gsm8k_becomes_prompt_and_completion_by_its_own_columns(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "models/stories260K"))
    config = DataConfig(
        path=str(shared_data / "gsm8k/test.jsonl"),
        columns={"prompt": "question", "completion": "answer"},
        over_length="drop",
    )
    examples = load_sft(config, tokenizer, max_length=512).rows
    assert 1_000 < len(examples) < 1_319
    rows = [json.loads(line) for line in Path(config.path).read_text().splitlines()]
    for example in examples:
        row = rows[int(example.example_id.removeprefix("test:"))]
        prompt_ids_T = tokenizer(row["question"])["input_ids"]
        assert example.token_ids_T[: len(prompt_ids_T)].tolist() == prompt_ids_T
        assert not example.trained_T[: len(prompt_ids_T)].any()
        assert example.trained_T[len(prompt_ids_T) :].all()
        assert example.token_ids_T[-1] == tokenizer.eos_token_id
        completion = tokenizer.decode(example.token_ids_T, skip_special_tokens=True)
        assert completion.removeprefix(row["question"]).strip() == row["answer"].strip()
