"""From rows to tokenized prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_ray.config.base import DataConfig
from rlhf_ray.data.chat import Messages, check_messages, column, render, require_chat_template
from rlhf_ray.data.files import Row, read_rows
from rlhf_ray.data.formats import DataError
from rlhf_ray.data.lengths import LengthPolicy
from rlhf_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, context_tokens: int
) -> list[Prompt]:
    """Read and tokenize all prompts of a data set, in the order of its rows.

    A string is tokenized as it stands, with the special tokens that the tokenizer adds by itself.
    Chat messages, and with `chat` also strings, go through the chat template, which writes all
    special tokens itself. If the last message is the assistant's, the policy continues it. The one
    column of a `.txt` file counts as the prompt column.

    `prompt_tokens` cuts a text to its first tokens, a begin token among them; `text` is then what
    they decode to. A prompt over the limit is an error, dropped, or truncated to its *last* tokens,
    which hold the question and the template's opening of an answer; a begin token in front is kept,
    because models lean on it. `text` stays whole then: rewards judge the question that was asked.

    Args:
        config: Where the rows are and what becomes of them.
        tokenizer: The policy's.
        context_tokens: The most that the context leaves for a prompt. `max_prompt_tokens` can lower
            this limit, but not raise it.

    Raises:
        DataError: No data, a malformed row, a chat without a template, or a prompt over the limit;
            file and line are named.
    """
    rows = read_rows(
        config.path,
        split=config.split,
        separator=config.separator,
        text_column=config.prompt_column,
        skip=config.skip,
        limit=config.limit,
    )
    by_setting = 0 < config.max_prompt_tokens <= context_tokens
    policy = LengthPolicy(
        what="prompts",
        limit=config.max_prompt_tokens if by_setting else context_tokens,
        limit_name="max_prompt_tokens" if by_setting else "the context",
        over_length=config.over_length,
    )
    prompts = []
    for row in rows:
        token_ids_T, text = _tokenize(row, config, tokenizer)
        decision = policy.decide(len(token_ids_T), row.where)
        if decision == "drop":
            continue
        if decision == "truncate":
            token_ids_T = _keep_last(token_ids_T, policy.limit, tokenizer.bos_token_id)
        columns = {key: value for key, value in row.columns.items() if key != config.prompt_column}
        prompts.append(
            Prompt(prompt_id=row.row_id, token_ids_T=tuple(token_ids_T), text=text, columns=columns)
        )
    policy.report(config.path)
    return prompts


def _tokenize(
    row: Row, config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], str | Messages]:
    """Token ids of one row's prompt, and the prompt as reward functions get it."""
    value = column(row, config.prompt_column)
    text: str | Messages
    if not isinstance(value, str):
        text = check_messages(row, config.prompt_column, value)
        if config.prompt_tokens:
            raise DataError(f"{row.where}: prompt_tokens cuts texts, but this prompt is a chat")
        token_ids_T = _tokenize_chat(text, row, tokenizer)
    elif config.chat:
        text = value
        if config.prompt_tokens:
            bare_T = tokenizer(value, add_special_tokens=False, verbose=False)["input_ids"]
            text = _decode(tokenizer, bare_T[: config.prompt_tokens])
        token_ids_T = _tokenize_chat([{"role": "user", "content": text}], row, tokenizer)
    else:
        text, token_ids_T = value, tokenizer(value, verbose=False)["input_ids"]
        if config.prompt_tokens:
            token_ids_T = token_ids_T[: config.prompt_tokens]
            text = _decode(tokenizer, token_ids_T)
    if not token_ids_T:
        raise DataError(f"{row.where}: column {config.prompt_column!r} holds no tokens")
    return token_ids_T, text


def _tokenize_chat(messages: Messages, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    require_chat_template(tokenizer, row)
    continues = messages[-1]["role"] == "assistant"
    token_ids_T: list[int] = render(
        tokenizer,
        messages,
        row,
        tokenize=True,
        return_dict=False,
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )
    return token_ids_T


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids_T: list[int]) -> str:
    text: Any = tokenizer.decode(token_ids_T, skip_special_tokens=True)
    return str(text)


def _keep_last(token_ids_T: list[int], limit: int, bos_token_id: int | None) -> list[int]:
    if limit > 1 and token_ids_T[0] == bos_token_id:
        return [token_ids_T[0], *token_ids_T[-(limit - 1) :]]
    return token_ids_T[-limit:]
