"""What stands between turns is what the whole chat's rendering has there, or is refused."""

from __future__ import annotations

import acting
import pytest

from rlhf_ray.data.chat.borders import decode, written_tokens
from rlhf_ray.environments.turns import TurnTemplate, shortened_message
from rlhf_ray.errors import ConfigError

CALL = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
ASKS = {"role": "user", "content": "Which one?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
FOUND = {"role": "tool", "name": "look", "tool_call_id": "call00000", "content": "the 7"}
ANSWERS = {"role": "assistant", "content": "It is 7."}


@pytest.mark.parametrize("family", sorted(acting.FAMILIES))
def test_tools_can_follow_an_answer_in_every_family(family: str) -> None:
    acting.turn_template(family).check(["tool"])


@pytest.mark.parametrize("family", ["qwen2.5", "llama3", "llama3.1"])
def test_users_can_follow_where_answers_stay_as_they_are(family: str) -> None:
    acting.turn_template(family).check()


@pytest.mark.parametrize(
    ("family", "became"), [("qwen3", "<think>.*becomes"), ("gpt-oss", "analysis.*becomes")]
)
def test_users_are_refused_where_they_would_change_what_was_said(family: str, became: str) -> None:
    with pytest.raises(ConfigError, match=f"renders an answer anew .*'user' .*{became}") as refused:
        acting.turn_template(family).check(["user"])
    assert "environment.template: append" in str(refused.value)


def test_a_template_that_adds_reasoning_to_a_prompt_and_takes_it_away_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"renders an answer anew .*<think>.*becomes"):
        acting.turn_template("qwen3", enable_thinking=False).check(["tool"])


@pytest.mark.parametrize(
    ("family", "own"),
    [
        ("qwen2.5", '<tool_call>\n{"name": "look", "arguments": {"x": 1}}\n</tool_call><|im_end|>'),
        ("qwen3", "<think>\nHm.\n</think>\n\nSo.<|im_end|>"),
        ("llama3", "look(1)<|eot_id|>"),
        ("llama3.1", '{"name": "look", "parameters": {"x": 1}}<|eot_id|>'),
        ("gpt-oss", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.look"
                    '<|channel|>commentary json<|message|>{"x": 1}<|call|>'),
    ],
)  # fmt: skip
def test_what_stands_between_is_what_the_template_writes_there(family: str, own: str) -> None:
    """Of a whole chat, rendered by the template: all that follows the call."""
    template = acting.turn_template(family)
    tokenizer = template.tokenizer
    calls = CALLS if family != "llama3" else {"role": "assistant", "content": "look(1)"}
    whole = tokenizer.apply_chat_template(
        [ASKS, calls, FOUND], tokenize=False, add_generation_prompt=True
    )
    own_T = written_tokens(tokenizer, own)
    between = decode(tokenizer, template.tokens(own_T[-1], [FOUND]))
    assert "the 7" in between
    assert whole.endswith(between)
    assert whole[: -len(between)].endswith(tokenizer.convert_ids_to_tokens(own_T[-1]))


def test_a_turn_that_a_stop_string_ended_gets_the_templates_end() -> None:
    template = acting.of_tokenizer(acting.byte_tokenizer(acting.CHATML), ["<|im_end|>"])
    by_token = template.tokens(*_ends(template, "<|im_end|>"), [ASKS])
    by_string = template.tokens(*_ends(template, "."), [ASKS])
    end_id = template.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert by_string == [end_id, *by_token]
    assert decode(template.tokenizer, by_token) == (
        "\n<|im_start|>user\nWhich one?<|im_end|>\n<|im_start|>assistant\n"
    )


def _ends(template: TurnTemplate, text: str) -> list[int]:
    return written_tokens(template.tokenizer, text)


def test_a_template_whose_end_ends_no_response_is_refused() -> None:
    template = acting.of_tokenizer(acting.byte_tokenizer(acting.CHATML), ["<|endoftext|>"])
    with pytest.raises(ConfigError, match=r"ends a turn by no token.*'<\|endoftext\|>'"):
        template.check(["user"])


def test_long_messages_are_cut_and_say_so() -> None:
    tokenizer = acting.byte_tokenizer(acting.CHATML)
    assert shortened_message(tokenizer, FOUND, 5) == FOUND
    long = {**FOUND, "content": "é" * 1000}
    cut = shortened_message(tokenizer, long, 5)
    assert cut == {**FOUND, "content": "éé\n[cut after 5 tokens: 998 characters more]"}
