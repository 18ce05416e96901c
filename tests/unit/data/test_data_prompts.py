from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loads import load_prompts

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.chat.tokenizer import load_tokenizer
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.errors import DataError
from rlhf_ray.types import Prompt

CONTEXT = 200
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2+2?"}]


def load(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    context_tokens: int = CONTEXT,
    **config: Any,
) -> list[Prompt]:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(path), **config)
    return load_prompts(data, tokenizer, context_tokens=context_tokens).rows


@pytest.mark.parametrize("bos", [False, True])
def test_a_string_prompt_survives_exactly(
    tmp_path: Path, make_tokenizer: Callable[..., Any], bos: bool
) -> None:
    tokenizer = make_tokenizer(bos=bos)
    text = "  two  spaces,\n\ttab, é中🙂 and a literal <|im_end|> \n"
    row = {"prompt": text, "answer": 4, "tags": ["a"]}
    [prompt] = load(tmp_path, [row], tokenizer)
    assert prompt.prompt_id == "train:0"
    assert prompt.text == text
    assert prompt.columns == {"answer": 4, "tags": ["a"]}
    assert list(prompt.token_ids_T) == tokenizer(text)["input_ids"]
    assert (prompt.token_ids_T[0] == tokenizer.bos_token_id) == bos
    assert tokenizer.decode(prompt.token_ids_T[bos:]) == text


def test_a_chat_has_one_begin_token_and_opens_an_answer(
    tmp_path: Path, chat_tokenizer: Any
) -> None:
    [prompt] = load(tmp_path, [{"prompt": CHAT}], chat_tokenizer)
    assert prompt.text == CHAT
    assert prompt.token_ids_T.count(chat_tokenizer.bos_token_id) == 1
    assert chat_tokenizer.decode(prompt.token_ids_T) == (
        "<s><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_wraps_a_string_and_leaves_its_text_alone(tmp_path: Path, chat_tokenizer: Any) -> None:
    [prompt] = load(tmp_path, [{"prompt": "2+2?"}], chat_tokenizer, chat=True)
    assert prompt.text == "2+2?"
    assert chat_tokenizer.decode(prompt.token_ids_T) == (
        "<s><|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_that_was_begun_is_continued(tmp_path: Path, chat_tokenizer: Any) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "The answer is"}]
    [prompt] = load(tmp_path, [{"prompt": begun}], chat_tokenizer)
    assert chat_tokenizer.decode(prompt.token_ids_T).endswith("assistant\nThe answer is")


@pytest.mark.parametrize(
    ("template_end", "said", "is_open"),
    [
        ("", None, False),
        ("<think>\n", None, True),
        ("<think>\n\n</think>\n\n", None, False),
        ("", "<think>\nlet me", True),
        ("", "<think>2+2</think>It is", False),
        ("", "It is", False),
    ],
)
def test_a_prompt_says_whether_it_ends_inside_of_reasoning(
    tmp_path: Path, chat_tokenizer: Any, template_end: str, said: str | None, is_open: bool
) -> None:
    begun = [] if said is None else [{"role": "assistant", "content": said}]
    chat_tokenizer.chat_template += (
        "{% if add_generation_prompt %}{{ '" + template_end + "' }}{% endif %}"
    )
    asked = [{"role": "user", "content": "what is a <think>?"}]
    [prompt] = load(tmp_path, [{"prompt": asked + begun}], chat_tokenizer)
    assert prompt.opens_reasoning == is_open


def test_texts_are_cut_to_their_first_tokens(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(bos=True)
    path = tmp_path / "stories.txt"
    path.write_text("Once upon a time<|endoftext|>Hi")
    config = DataConfig(path=str(path), prompt_tokens=5)
    prompts = load_prompts(config, tokenizer, context_tokens=5).rows
    assert [prompt.text for prompt in prompts] == ["Once", "Hi"]
    assert list(prompts[0].token_ids_T) == tokenizer("Once")["input_ids"]


def test_a_text_in_a_chat_is_cut_before_it_is_wrapped(tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [{"prompt": "Once upon a time"}]
    [prompt] = load(tmp_path, rows, chat_tokenizer, chat=True, prompt_tokens=4)
    assert prompt.text == "Once"
    assert "user\nOnce<|im_end|>" in chat_tokenizer.decode(prompt.token_ids_T)


def test_ids_do_not_depend_on_what_is_skipped_or_dropped(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    rows = [{"prompt": "x" * length} for length in (1, 20, 3, 4)]
    tokenizer = make_tokenizer()
    prompts = load(tmp_path, rows, tokenizer, skip=1, max_prompt_tokens=9, over_length="drop")
    assert [prompt.prompt_id for prompt in prompts] == ["train:2", "train:3"]


@pytest.mark.parametrize(
    ("context_tokens", "config", "name"),
    [
        (CONTEXT, {"max_prompt_tokens": 6}, "max_prompt_tokens"),
        (6, {}, "the context"),
        (6, {"max_prompt_tokens": 7}, "the context"),
    ],
)
def test_a_prompt_over_the_limit_is_named(
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    context_tokens: int,
    config: dict[str, Any],
    name: str,
) -> None:
    rows = [{"prompt": "short"}, {"prompt": "longer"}, {"prompt": "longest"}]
    message = rf"train\.jsonl:3: 7 tokens, but {name} allows 6 tokens; set over_length"
    with pytest.raises(DataError, match=message):
        load(tmp_path, rows, make_tokenizer(), context_tokens, **config)


def test_dropped_prompts_are_counted_in_one_line(
    tmp_path: Path, make_tokenizer: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "short"}, {"prompt": "too long"}, {"prompt": "longer still"}]
    with caplog.at_level(logging.WARNING):
        prompts = load(tmp_path, rows, make_tokenizer(), 6, over_length="drop")
    assert [prompt.text for prompt in prompts] == ["short"]
    [record] = caplog.records
    assert "prompt (prompt), 3 read, 1 kept; left out: 2 too long (first " in record.getMessage()


def test_dropping_everything_is_an_error(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match="no row of 2 is left; left out: 2 too long"):
        load(tmp_path, [{"prompt": "long"}] * 2, make_tokenizer(), 3, over_length="drop")


@pytest.mark.parametrize(("bos", "kept"), [(False, "question?"), (True, "<s>uestion?")])
def test_truncating_keeps_the_last_tokens_and_the_begin_token(
    tmp_path: Path, make_tokenizer: Callable[..., Any], bos: bool, kept: str
) -> None:
    tokenizer = make_tokenizer(bos=bos)
    rows = [{"prompt": "a long way to the question?"}]
    [prompt] = load(tmp_path, rows, tokenizer, 9, over_length="truncate")
    assert len(prompt.token_ids_T) == 9
    assert tokenizer.decode(prompt.token_ids_T) == kept
    assert prompt.text == "a long way to the question?"


def test_truncating_to_one_token_keeps_the_last(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(bos=True)
    [prompt] = load(tmp_path, [{"prompt": "ab"}], tokenizer, 1, over_length="truncate")
    assert tokenizer.decode(prompt.token_ids_T) == "b"


@pytest.mark.parametrize(
    ("row", "config", "message"),
    [
        ({"question": "?", "n": 1}, {}, r"no column 'prompt': columns there: 'question', 'n'"),
        ({"prompt": None}, {}, "no column 'prompt'"),
        (
            {"prompt": 7},
            {},
            "column 'prompt' must be a string or a list .*, got 7",
        ),
        ({"prompt": []}, {}, r"got \[\]"),
        ({"prompt": [*CHAT, {"from": "human"}]}, {}, "message 2 of column 'prompt'"),
        ({"prompt": [{"role": "user", "content": 5}]}, {}, "message 0 .* must have a text, got 5"),
        ({"prompt": CHAT}, {"prompt_tokens": 4}, "prompt_tokens cuts texts, but this"),
        ({"prompt": CHAT}, {}, "no chat template: set the model's chat_template"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    row: dict[str, Any],
    config: dict[str, Any],
    message: str,
) -> None:
    rows = [{"prompt": "good"}, row]
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*{message}"):
        load(tmp_path, rows, make_tokenizer(), **config)


def test_chat_without_a_template_says_what_to_set(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=r"no chat template: set the model's chat_template"):
        load(tmp_path, [{"prompt": "hi"}], make_tokenizer(), chat=True)


def test_a_template_that_refuses_a_chat_is_named(tmp_path: Path, chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*refuses this chat: no system turns"):
        load(tmp_path, [{"prompt": CHAT}], chat_tokenizer)


def test_a_context_without_room_is_an_error(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match="the context must leave at least 1 token, got -4"):
        load(tmp_path, [{"prompt": "x"}], make_tokenizer(), -4)


def test_all_gsm8k_questions_fit_the_context_of_stories260k(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "models/stories260K"))
    path = str(shared_data / "gsm8k/test.jsonl")
    config = DataConfig(path=path, columns={"prompt": "question"})
    prompts = load_prompts(config, tokenizer, context_tokens=512).rows
    rows = list(read_rows(DataConfig(path=path)))
    assert len(prompts) == 1_319
    for prompt, row in zip(prompts, rows, strict=True):
        assert prompt.text == row.columns["question"]
        assert prompt.columns == {"answer": row.columns["answer"]}
        assert prompt.token_ids_T[0] == 1
        assert tokenizer.decode(prompt.token_ids_T, skip_special_tokens=True) == prompt.text


def test_stories_are_cut_to_their_first_24_tokens(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "models/stories260K"))
    path = str(shared_data / "text/tinystories_sample.txt")
    config = DataConfig(path=path, prompt_tokens=24)
    prompts = load_prompts(config, tokenizer, context_tokens=448).rows
    stories = list(read_rows(DataConfig(path=path)))
    for prompt, story in zip(prompts, stories, strict=True):
        assert len(prompt.token_ids_T) == 24
        begin = str(prompt.text).rstrip("\ufffd")  # a character may be cut in two
        assert story.columns["text"].startswith(begin)


@pytest.mark.parametrize(
    ("num_tokens", "text"), [(2, " "), (3, " a"), (4, " a"), (5, " aé"), (6, " aéb"), (9, " aéb")]
)
def test_a_cut_text_is_its_own_beginning_to_a_whole_character(
    tmp_path: Path, make_tokenizer: Callable[..., Any], num_tokens: int, text: str
) -> None:
    tokenizer = make_tokenizer(bos=True, eos=True)
    [prompt] = load(tmp_path, [{"prompt": " aéb"}], tokenizer, prompt_tokens=num_tokens)
    assert prompt.text == text
    assert tokenizer.decode(prompt.token_ids_T) == f"<s>{text}"
