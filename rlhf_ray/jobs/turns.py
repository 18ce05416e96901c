"""Whether an environment's turns can follow a job's prompts, before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.chat_options import template_options
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.protocol import message_roles, tool_schemas
from rlhf_ray.errors import ConfigError, short
from rlhf_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each is rendered several times; rows whose options are all different would take minutes.
_MOST_OPTIONS = 100


def check_turns(
    config: OnlineConfig,
    tokenizer: PreTrainedTokenizerBase,
    end_token_ids: Sequence[int],
    data: Mapping[str, Sequence[Prompt]],
) -> None:
    """Whether chats go on behind an answer, with the messages that the environment sends.

    The template is checked once for all rows that have the same for it beside their messages.

    Args:
        config: The job, which has an environment.
        tokenizer: The policy's, with its chat template.
        end_token_ids: Tokens that end a response.
        data: The key of a data set -> the rows of it that are looked at.

    Raises:
        ConfigError: Prompts are no chats, or the template is none that turns can be added to.
    """
    from rlhf_ray.environments.turns import TurnTemplate

    for key, prompts in data.items():
        if prompts and not config.data_sets[key].chat:
            _check_chats(key, prompts)
    if config.environment.template == "append":
        return
    environment = environment_maker(config.environment)()
    roles, tools = message_roles(environment), tool_schemas(environment)
    rows = (prompt for prompts in data.values() for prompt in prompts)
    for prompt, options in _different_options(rows, tools):
        template = TurnTemplate(
            tokenizer=tokenizer, end_ids=frozenset(end_token_ids), options=options
        )
        try:
            template.check(roles)
        except ConfigError as error:
            raise ConfigError(f"{error} (of {prompt.prompt_id})") from error


def _check_chats(key: str, prompts: Sequence[Prompt]) -> None:
    texts = (prompt for prompt in prompts if isinstance(prompt.text, str))
    if text := next(texts, None):
        raise ConfigError(
            f"environment: prompts must be chats, as turns follow them, got {short(text.text)} "
            f"({text.prompt_id}): set {key}.chat, or take rows of messages"
        )


def _different_options(
    prompts: Iterable[Prompt], tools: Sequence[Mapping[str, Any]]
) -> list[tuple[Prompt, dict[str, Any]]]:
    """What the template gets beside messages, each with the first row that has it.

    Tools are written before the first turn: that there are some can change what stands between
    later ones, and not which they are.
    """
    found: dict[str, tuple[Prompt, dict[str, Any]]] = {}
    for prompt in prompts:
        options = template_options(prompt.columns, prompt.prompt_id, tools=tools)
        kind = {**options, "tools": bool(options.get("tools"))}
        found.setdefault(json.dumps(kind, sort_keys=True, default=str), (prompt, options))
        if len(found) == _MOST_OPTIONS:
            break
    return list(found.values())
