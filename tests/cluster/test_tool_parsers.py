"""vLLM's parsers of tool calls read what their families write."""

from __future__ import annotations

import pytest

from actors.environments.tool_parsers import VllmParser
from rlhf_ray.errors import ConfigError

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look up a place.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<|endoftext|>", "<|python_tag|>", "<tool_call>", "</tool_call>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(marks + symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=marks[0], additional_special_tokens=marks[1:]
    )


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", 'So:<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call>'),
        ("llama3_json", '{"name": "look", "parameters": {"x": 1}}'),
        ("pythonic", "[look(x=1)]"),
    ],
)
def test_a_familys_calls_are_read(tokenizer, name, answer):
    parser = VllmParser(name, tokenizer, [LOOK])
    for _ in range(2):
        [call] = parser.calls(answer)
        assert (call.name, call.arguments, call.fault) == ("look", {"x": 1}, "")
    assert parser.calls("It is 7.") == []


def test_a_parser_that_vllm_lacks_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="tool parser 'nobodys' of vLLM cannot be used"):
        VllmParser("nobodys", tokenizer, [LOOK])
