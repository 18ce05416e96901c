"""Loading a tokenizer: its chat template, which may be one by name, and its pad token."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from rlhf_ray.config.checks.references import is_hub_name, origin
from rlhf_ray.data.chat.borders import Tokenizer
from rlhf_ray.data.chat.turn_end import checked_turn_end, only_token
from rlhf_ray.errors import ConfigError

logger = logging.getLogger(__name__)

# Chat templates by name, for models that bring none. All of them render a chat's beginning alike
# whatever follows, so that a prompt has the same tokens while sampling and while training.
CHAT_TEMPLATES = {
    # https://github.com/tatsu-lab/stanford_alpaca, with further turns below one another.
    "alpaca": (
        "{{ bos_token }}"
        "{% if messages[0].role != 'system' %}"
        "{{ 'Below is an instruction that describes a task. Write a response that appropriately '"
        " + 'completes the request.\n\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
        "{% elif message.role == 'assistant' %}"
        "{{ '### Response:\n' + message.content + eos_token + '\n\n' }}"
        "{% else %}{{ message.content + '\n\n' }}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
        "{{ message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% set ns = namespace(system='') %}"
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content + '\n\n' %}"
        "{% elif message.role == 'user' %}"
        "{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}{% set ns.system = '' %}"
        "{% elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
        "{% else %}{{ raise_exception('it has no turns of the role ' + message.role) }}"
        "{% endif %}"
        "{% endfor %}"
    ),
    "vicuna": (
        "{{ bos_token }}"
        "{% if messages[0].role != 'system' %}"
        "{{ 'A chat between a curious user and an artificial intelligence assistant. The '"
        " + 'assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
        "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}"
        "{% else %}{{ message.content + ' ' }}"
        "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}"
        "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
# Written by a template of this name, and of no use when spelt by several tokens.
TEMPLATE_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def load_tokenizer(
    path: str, *, chat_template: str = "", trust_remote_code: bool = False, revision: str = "main"
) -> Tokenizer:
    """Load a tokenizer, from a folder or the hub; where it has no pad token, its end token pads.

    `chat_template` is one of `CHAT_TEMPLATES`, Jinja text or a file's path; empty for its own.

    Raises:
        ConfigError: No tokenizer there, no template there, a template that needs tokens that the
            vocabulary lacks, or neither a pad nor an end token.
    """
    from transformers import AutoTokenizer

    local = Path(path).expanduser()
    is_local = bool(path) and local.exists()
    if not is_local and not is_hub_name(path):
        wanted = f"wanted a folder, or a name on the hub{origin(path)}"
        raise ConfigError(f"no tokenizer at {path!r}; {wanted}")
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            str(local) if is_local else path, trust_remote_code=trust_remote_code, revision=revision
        )
    # transformers and tokenizers raise many unrelated types for an unreadable tokenizer.
    except Exception as error:
        kind = "folder" if is_local else "hub name (no such folder is on this machine)"
        raise ConfigError(
            f"cannot load a tokenizer from the {kind} {path!r}: {type(error).__name__}: {error}"
        ) from error

    if chat_template:
        _set_template(tokenizer, chat_template)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"the tokenizer {path!r} has neither a pad token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("tokenizer %s has no pad token: %r pads", path, tokenizer.eos_token)
    return tokenizer


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Equal for tokenizers that mean the same by every token id."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()


def _set_template(tokenizer: Tokenizer, chat_template: str) -> None:
    needed = [*TEMPLATE_TOKENS.get(chat_template, ())]
    if missing := [token for token in needed if only_token(tokenizer, token) is None]:
        raise ConfigError(
            f"chat_template {chat_template!r} needs the tokens {', '.join(missing)}, which the "
            f"tokenizer {tokenizer.name_or_path!r} lacks: add them to it, or set another template"
        )
    tokenizer.chat_template = _template_text(chat_template)
    checked_turn_end(tokenizer)


def _template_text(chat_template: str) -> str:
    if chat_template in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[chat_template]
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    try:
        return Path(chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template must be one of {', '.join(CHAT_TEMPLATES)}, Jinja text or a readable "
            f"file, got {chat_template!r}: {error}"
        ) from error
