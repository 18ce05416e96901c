"""Functions as tools: what a policy is shown, called for it, and told when a call is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.environments.examples import calculate, python, search
from rlhf_ray.environments.loading import environment_maker
from rlhf_ray.environments.protocol import Environment, tool_schemas
from rlhf_ray.environments.tool_calls import HarmonyParser, HermesParser
from rlhf_ray.environments.tools import ToolEnvironment
from rlhf_ray.errors import ConfigError
from rlhf_ray.types import Prompt


def add(x: int, y: int = 1) -> int:
    """Add two numbers.

    Args:
        x: The first.
        y: The second.
    """
    return x + y


async def doubled(x: float) -> dict[str, float]:
    """Double a number.

    Args:
        x: The number.
    """
    await asyncio.sleep(0)
    return {"twice": 2 * x}


def fails(text: str) -> str:
    """Fail.

    Args:
        text: With which words.
    """
    raise LookupError(text)


def leaves() -> None:
    """End the process."""
    sys.exit(3)


async def places() -> Any:
    """Give what JSON cannot write."""
    return {(1, 2): 3}


def circles() -> Any:
    """Give what contains itself."""
    found: list[Any] = []
    found.append(found)
    return found


RELEASE = threading.Event()


def hangs() -> str:
    """Wait for nothing."""
    RELEASE.wait(60)
    return ""


TOOLS = [add, doubled, fails, hangs, leaves, places, circles]


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


async def said(answer, **options):
    step = await ToolEnvironment(TOOLS, **options).step(answer)
    return [message["content"] for message in step.messages], step


async def test_calls_are_answered_in_their_order():
    contents, step = await said(
        f"So:{call('add', x=2)}\n{call('doubled', x=1.5)}{call('add', x='3')}"
    )
    assert contents == ["3", '{"twice": 3.0}', "4"]
    assert (step.num_calls, step.num_failed_calls, step.is_done) == (3, 0, False)
    first, second, _ = step.messages
    assert (first["role"], first["name"], first["tool_call_id"]) == ("tool", "add", "call00000")
    assert second["tool_call_id"] == "call00001"


async def test_an_answer_that_calls_nothing_is_the_last():
    for answer in ("It is 7.", "", f"<think>{call('add', x=2)}</think>It is 7."):
        contents, step = await said(answer)
        assert contents == [] and step.is_done and step.num_calls == 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("<tool_call>add(2)</tool_call>", "the call could not be read: no JSON"),
        ('<tool_call>{"name": "add", "arguments": {"x": 2}', "could not be read: no JSON"),
        ('<tool_call>{"arguments": {}}</tool_call>', "an object with a name and arguments"),
        ('<tool_call>{"name": "add", "arguments": [2]}</tool_call>', "must be an object"),
        (call("sub", x=2), "there is no tool 'sub', only add, doubled, fails, hangs, "),
        (call("add"), "Missing required argument"),
        (call("add", x="two"), "valid integer"),
        (call("add", x=1, z=2), "Unexpected keyword argument"),
        (call("fails", text="not there"), "LookupError: not there"),
        (call("leaves"), "SystemExit: 3"),
        (call("places"), "TypeError: keys must be str"),
        (call("circles"), "ValueError: Circular reference"),
        (call("hangs"), "hangs took more than 0.2 s"),
    ],
)
async def test_what_is_wrong_is_said_to_the_policy_and_counted(answer, words):
    try:
        [content], step = await said(answer, call_timeout_s=0.2)
    finally:
        RELEASE.set()
        RELEASE.clear()
    assert content.startswith("error: ") and words in content
    assert len(content) <= 510
    assert (step.num_calls, step.num_failed_calls, step.is_done) == (1, 1, False)


async def test_text_that_no_tokenizer_reads_is_replaced():
    half = chr(0xD800)
    step = await ToolEnvironment([fails]).step(call("fails", text=half) + call(f"x{half}"))
    first, second = step.messages
    assert first["content"] == "error: LookupError: ?" and second["name"] == "x?"
    assert "there is no tool" in second["content"]


def test_a_call_whose_end_was_forgotten_is_read():
    [read] = HermesParser().calls(call("add", x=2).removesuffix("\n</tool_call>"))
    assert (read.name, read.arguments, read.fault) == ("add", {"x": 2}, "")


@pytest.mark.parametrize(
    ("answer", "name", "arguments"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.add<|channel|>"
         'commentary json<|message|>{"x": 1}', "add", {"x": 1}),
        ('<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"x": 1}', "add",
         {"x": 1}),
        ("<|channel|>commentary to=functions.hangs<|message|>", "hangs", {}),
    ],
)  # fmt: skip
def test_calls_of_gpt_oss_are_read(answer, name, arguments):
    [read] = HarmonyParser().calls(answer)
    assert (read.name, read.arguments, read.fault) == (name, arguments, "")
    assert HarmonyParser().calls("<|channel|>final<|message|>It is 7.") == []
    spoken_of = "<|channel|>analysis<|message|>Not to=functions.add yet.<|end|><|start|>assistant"
    assert [call.name for call in HarmonyParser().calls(spoken_of + answer)] == [read.name]
    [wrong] = HarmonyParser().calls(f"{answer} and")
    assert "could not be read" in wrong.fault


def test_functions_are_shown_as_chat_templates_take_them():
    [schema] = tool_schemas(ToolEnvironment([add]))
    assert schema == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "x": {"type": "integer", "description": "The first."},
                    "y": {"type": "integer", "description": "The second."},
                },
                "required": ["x"],
            },
        },
    }
    assert tool_schemas(object()) == []


def test_functions_that_cannot_be_shown_are_refused():
    def bare(x):
        return x

    with pytest.raises(ConfigError, match="the tool 'bare' must have type hints, and a docstring"):
        ToolEnvironment([bare])
    with pytest.raises(ConfigError, match="different names, got "):
        ToolEnvironment([add, add])
    with pytest.raises(ConfigError, match="one of hermes, harmony, got 'llama'"):
        ToolEnvironment([add], parser="llama")


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2 + 3 * 4", "14"), ("(1 - 3) ** 2 / 8", "0.5"), ("-7 // 2", "-4"), ("sqrt(2) > 1", None),
     ("max(1, 2.5) + abs(-1)", "3.5"), ("round(2.345, 2)", "2.35"), ("7 % 4", "3"),
     ("__import__('os')", None), ("9 ** 9 ** 9", None), ("round(1, -999999999)", None),
     ("(1).real", None), ("'a' * 9", None), ("True + 1", None), ("1 +", None),
     ("x", None), ("(" * 500 + "1" + ")" * 500, None), ("max(*[1])", None)],
)  # fmt: skip
def test_the_calculator_works_out_arithmetic_and_runs_nothing(expression, value):
    if value is not None:
        assert calculate(expression) == value
        return
    with pytest.raises((ValueError, SyntaxError, MemoryError)):
        calculate(expression)


async def test_scripts_run_in_the_sandbox_and_say_how_they_ended():
    environment = python(timeout_s=60.0)

    async def printed(code):
        step = await environment.step(call("python", code=code))
        return step.messages[0]["content"]

    assert await printed("print(6 * 7)") == "42"
    assert "ZeroDivisionError" in await printed("1 / 0")
    assert await printed("x = 1") == "nothing printed"
    quick = await python(timeout_s=1.0).step(call("python", code="import time; time.sleep(99)"))
    assert quick.messages[0]["content"] == "ended: too much time"


async def test_what_this_library_refuses_is_no_message_to_the_policy():
    def refused() -> str:
        """Refuse."""
        raise ConfigError("no sandbox on this machine")

    with pytest.raises(ConfigError, match="no sandbox on this machine"):
        await ToolEnvironment([refused]).step(call("refused"))


async def test_search_finds_passages_by_their_words(tmp_path):
    (tmp_path / "fruit.md").write_text("Apples are red.\n\nPears are green, and pears are sweet.")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "sky.txt").write_text("The sky is blue.")
    (tmp_path / "code.py").write_text("pears = 1")
    environment = search(str(tmp_path), most=1)
    step = await environment.step(call("search", query="sweet pears"))
    assert step.messages[0]["content"] == "[fruit.md] Pears are green, and pears are sweet."
    step = await environment.step(call("search", query="BLUE?"))
    assert step.messages[0]["content"] == "[sub/sky.txt] The sky is blue."
    assert (await environment.step(call("search", query="zebra"))).messages[0]["content"] == (
        "nothing found"
    )
    with pytest.raises(ConfigError, match="no text in"):
        search(str(tmp_path / "nothing"))


def test_an_environment_is_made_by_its_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "class Game:\n"
        "    def __init__(self, size=3): self.size = size\n"
        "    async def reset(self, prompt, seed): ...\n"
        "    async def step(self, answer): ...\n"
        "    async def close(self): ...\n"
        "def nothing(): return 7\n"
    )
    make = environment_maker(EnvironmentConfig(path=f"{file}:Game", arguments={"size": 5}))
    assert make().size == 5 and make() is not make()
    calculator = environment_maker(
        EnvironmentConfig(path="rlhf_ray.environments.examples:calculator")
    )
    assert isinstance(calculator(), Environment)
    for path, arguments, words in (
        (f"{file}:Gaem", {}, "environment .*has no function 'Gaem'"),
        (f"{file}:Game", {"width": 5}, r"with the arguments {'width': 5} raised TypeError"),
        (f"{file}:nothing", {}, "must give an object with reset, step and close, got int"),
        ("no_such_module:x", {}, "environment 'no_such_module:x': no module"),
    ):
        with pytest.raises(ConfigError, match=words):
            environment_maker(EnvironmentConfig(path=path, arguments=arguments))


async def test_the_pages_example_is_an_environment(tmp_path):
    page = Path(__file__).parents[3] / "rlhf_ray/environments/README.md"
    [block] = re.findall(r"<!-- file: my_game\.py -->\n```python\n(.*?)```", page.read_text(), re.S)
    file = tmp_path / "my_game.py"
    file.write_text(block)
    game = environment_maker(EnvironmentConfig(path=f"{file}:Guess"))()
    await game.reset(Prompt(prompt_id="p", token_ids_T=(1,), text="?", columns={"number": 7}), 0)
    first = await game.step("Is it 5")
    assert (first.messages[0]["content"], first.reward) == ("higher", -0.1)
    assert (await game.step("9")).messages[0]["content"] == "lower"
    assert (await game.step("It is 7")).is_done
    await game.close()


def test_arguments_without_an_environment_are_refused():
    with pytest.raises(ValueError, match="path must name the environment"):
        EnvironmentConfig(arguments={"size": 5})
