"""Do a job's models fit their roles, each other, its tokens and its texts? Asked before the start.

Of models in folders `rlhf_ray.config.checks.preflight` has asked the first already; here hub names
and the results of other stages are as well, and what only tokenizer and data tell.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.checks.model_files import (
    Kind,
    kind_fault,
    quantization_fault,
    token_id_faults,
)
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.rewards import RewardModelConfig
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.limits import most_tokens, read_config
from rlhf_ray.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CLASSES = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING", "causal language model"),
    "classifier": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "sequence classifier"),
}
# Embeddings are padded to a multiple of up to so many rows; families differ by far more.
_MOST_PADDING = 1024


def check_model(key: str, model: ModelConfig, kind: Kind, *, is_trained: bool) -> None:
    """Refuse a model that is no use in its role, which takes `kind`.

    `key` is where the configuration names it, such as `policy.model.path`.

    Raises:
        ConfigError: Says what it is; or it cannot be read.
    """
    config = read_config(model)
    written, _ = type(config).get_config_dict(model.path, revision=model.revision)
    generation = _generation_config(key, model) if kind == "causal" else {}
    faults = [kind_fault(written, kind), _class_fault(config, written, kind, model)]
    if is_trained:
        faults.append(quantization_fault(written, model))
    faults += token_id_faults(written, generation)
    found = [fault for fault in faults if fault]
    if found:
        raise ConfigError("\n".join(f"{key}: {model.path!r} {fault}" for fault in found))


def check_tokens(
    key: str,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows[Any] | RowStream[Any] | None = None,
) -> None:
    """Refuse a tokenizer that gives a model tokens which it has no embedding of.

    What it knows beyond the embedding and the job does not use (Gemma's picture tokens) is no harm.
    Of the job's tokenized rows, those of a stream are looked at as they come.

    Raises:
        ConfigError: Names the token.
    """
    num_rows = int(read_config(model).get_text_config().vocab_size)
    used = {"padding token": tokenizer.pad_token_id, "end token": tokenizer.eos_token_id}
    # The tokens that any text may hold.
    own_ids = {*tokenizer.get_vocab().values()} - {*tokenizer.get_added_vocab().values()}
    used["vocabulary"] = max((index for index in own_ids if index >= num_rows), default=None)
    if isinstance(rows, RowStream):
        rows.refuse_tokens_from(num_rows)
    elif rows is not None:
        largest_ids = rows.numbers("largest_id")
        at = int(largest_ids.argmax())
        if largest_ids[at] >= num_rows:
            used[f"row {_name_of(rows[at])}"] = int(largest_ids[at])
    for what, token_id in used.items():
        if token_id is not None and token_id >= num_rows:
            raise ConfigError(
                f"{key}: the {what} of the tokenizer has {tokenizer.decode([token_id])!r} as token "
                f"{token_id}, but {model.path!r} has embeddings of the tokens 0 to {num_rows - 1} "
                "alone: take another tokenizer or token, or resize the model's embeddings"
            )


def check_room(key: str, model: ModelConfig, longest: int) -> None:
    """Refuse a model with fewer positions than the job's longest sequence has tokens.

    Raises:
        ConfigError: Says both.
    """
    positions = most_tokens(read_config(model))
    if positions is not None and positions < longest:
        raise ConfigError(
            f"{key}: {model.path!r} takes at most {positions} tokens, but the job's longest "
            f"sequence may have {longest}: lower the data's lengths or the new tokens"
        )


def check_scorer(reward: RewardModelConfig, longest: int) -> None:
    """Refuse a reward model that cannot score the job's texts.

    `longest` is the longest text in the policy's tokens: the model's own may be more or fewer, and
    what is longer in them is cut and counted.

    Raises:
        ConfigError: It is of no use as a scorer, or its positions are fewer than its texts need.
    """
    from rlhf_ray.data.chat.tokenizer import load_tokenizer

    key = "reward.model.path"
    model = ModelConfig(path=reward.path, trust_remote_code=reward.trust_remote_code)
    check_model(key, model, "classifier", is_trained=False)
    tokenizer = load_tokenizer(
        reward.tokenizer or reward.path,
        chat_template=reward.chat_template,
        trust_remote_code=reward.trust_remote_code,
    )
    check_tokens(key, model, tokenizer)
    positions = most_tokens(read_config(model))
    if positions is None:
        return
    if reward.max_length > positions:
        raise ConfigError(
            f"reward.model.max_length must be at most the model's {positions}, got "
            f"{reward.max_length}"
        )
    if not reward.max_length and positions < longest:
        raise ConfigError(
            f"{key}: {reward.path!r} takes at most {positions} tokens, but texts may have "
            f"{longest}: set reward.model.max_length to at most {positions}, and longer ones are "
            "cut there and counted (reward/truncated_share)"
        )


def longest_sequence(rows: Rows[Any] | RowStream[Any]) -> int:
    """Tokens of the longest sequence of tokenized rows; of a ranking, of a prompt and an answer.

    Of a stream, as many as it may have.
    """
    if isinstance(rows, RowStream):
        return rows.longest
    return int(rows.numbers("length").max())


def _name_of(row: Any) -> str:
    name: str = row.prompt_id if isinstance(row, Prompt) else row.example_id
    return name


def _class_fault(config: Any, written: Any, kind: Kind, model: ModelConfig) -> str | None:
    """Whether transformers has no class of the kind for a model."""
    import transformers

    if model.trust_remote_code and written.get("auto_map"):
        return None
    wanted = [_CLASSES[name] for name in ("causal", "classifier") if kind in (name, "critic")]
    if any(type(config) in getattr(transformers, mapping) for mapping, _ in wanted):
        return None
    return (
        f"is of type {config.model_type}, of which transformers "
        f"{importlib.metadata.version('transformers')} has no {' or '.join(n for _, n in wanted)}"
    )


def _generation_config(key: str, model: ModelConfig) -> dict[str, Any]:
    """What `generation_config.json` says; nothing where there is none.

    Raises:
        ConfigError: transformers would not load the model for what stands there.
    """
    from transformers import GenerationConfig

    folder = Path(model.path)
    if folder.is_dir() and not (folder / "generation_config.json").is_file():
        return {}
    try:
        found = GenerationConfig.from_pretrained(model.path, revision=model.revision)
    except OSError as error:
        if folder.is_dir():
            raise ConfigError(f"{key}: {model.path!r}: generation_config.json: {error}") from error
        return {}
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}: {model.path!r}: generation_config.json: {reason}") from error
    settings: dict[str, Any] = found.to_dict()
    return settings


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_vocabularies(
    policy: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    others: Mapping[str, ModelConfig],
) -> None:
    """Refuse models that are shown the policy's token ids and were trained on others.

    Tokens that were added later, such as those of a chat template, may differ. Of the others, by
    the keys that name them, those that start where the policy does are passed over.

    Raises:
        ConfigError: Another vocabulary, one that is too small, or a model that cannot be read.
    """
    for key, model in others.items():
        if not model.path or (model.path, model.revision) == (policy.path, policy.revision):
            continue
        # A tokenizer may know more than its own model, which never writes that.
        num_ids = max(tokenizer.get_vocab().values()) + 1
        num_rows = _num_rows(key, model)
        if num_rows < min(num_ids, _num_rows("policy.model.path", policy)):
            raise _another(key, model, f"has {num_rows} tokens, the policy's tokenizer {num_ids}")
        own = _tokenizer(model)
        if own is not None:
            if differing := _differing(tokenizer, own):
                raise _another(key, model, differing)
        elif num_rows - _num_rows("policy.model.path", policy) > _MOST_PADDING:
            raise _another(key, model, f"has {num_rows} tokens, the policy's tokenizer {num_ids}")


def _another(key: str, model: ModelConfig, how: str) -> ConfigError:
    return ConfigError(
        f"{key} must have the policy's vocabulary, as it is given the policy's token ids: "
        f"{model.path!r} {how}"
    )


def _num_rows(key: str, model: ModelConfig) -> int:
    """Of the embedding, padding included."""
    try:
        config = read_config(model)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    return int(config.get_text_config().vocab_size)


def _tokenizer(model: ModelConfig) -> Any:
    """The model's own tokenizer; None where it comes without one."""
    from transformers import AutoTokenizer

    path = model.tokenizer or model.path
    # Of a folder without one transformers makes up a tokenizer for some kinds of models.
    if Path(path).is_dir() and not any(
        file for name in ("tokenizer*", "vocab*", "*.model") for file in Path(path).glob(name)
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError):
        return None


def _differing(policys: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str:
    """The first id that both know by different words, in words; empty for none."""
    added = {*policys.get_added_vocab().values(), *other.get_added_vocab().values()}
    words = {index: word for word, index in other.get_vocab().items()}
    for word, index in sorted(policys.get_vocab().items(), key=lambda known: known[1]):
        if index not in added and words.get(index, word) != word:
            return f"has {words[index]!r} as token {index}, the policy {word!r}"
    return ""
