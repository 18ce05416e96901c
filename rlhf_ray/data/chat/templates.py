"""Chat templates by name, for models that bring none.

All of them render a chat's beginning alike whatever follows, so that a prompt has the same tokens
while sampling and while training. Those of chatml and llama3 end a turn with a token of their own,
which the vocabulary must have; the others with the tokenizer's end token.
"""

from __future__ import annotations

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

_ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_MISTRAL = (
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
)

# https://github.com/tatsu-lab/stanford_alpaca, with further turns below one another.
_ALPACA = (
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
)

_VICUNA = (
    "{{ bos_token }}"
    "{% if messages[0].role != 'system' %}"
    "{{ 'A chat between a curious user and an artificial intelligence assistant. The assistant '"
    " + 'gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}"
    "{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' + message.content + eos_token }}"
    "{% else %}{{ message.content + ' ' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)

# Written by a template of this name, and of no use when spelt by several tokens.
TEMPLATE_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}

CHAT_TEMPLATES = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
}
