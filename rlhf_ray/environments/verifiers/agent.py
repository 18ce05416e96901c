"""A rollout of an environment of the package verifiers, for an Agent: it asks an OpenAI URL.

It runs in an environment of its own, where verifiers (0.4) and a taskset are installed and this
library is not: `environment: {path: "rlhf_ray.environments.agent:Agent", arguments: {command:
[PYTHON, THIS_FILE, TASKSET]}}`. With `--rows FILE` it writes the taskset's prompts as data.
Source: https://github.com/PrimeIntellect-ai/verifiers, its `Env.run_episode`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A row's number in its taskset.
COLUMN = "verifiers_task"


def main() -> None:
    """Play the task that standard input has, or write all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("taskset", help="the id of an installed taskset, as verifiers has it")
    parser.add_argument("--settings", type=json.loads, default={}, help="the taskset's, as JSON")
    parser.add_argument("--max-turns", type=int, help="of the policy; the job has a limit too")
    parser.add_argument("--rows", type=Path, help="write JSON lines there, and play nothing")
    given = parser.parse_args()
    environment = environment_of(given.taskset, given.settings, given.max_turns)
    if given.rows:
        rows = [json.dumps(row_of(task), ensure_ascii=False) for task in environment.taskset]
        given.rows.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        return
    number = json.load(sys.stdin)["columns"][COLUMN]
    [task] = environment.taskset.include(idx=[number])
    print(json.dumps({"reward": asyncio.run(reward_of(environment, task))}))


def environment_of(taskset: str, settings: dict[str, Any], max_turns: int | None) -> Any:
    """The taskset with an agent that chats and calls tools, in a process of this machine."""
    from verifiers.v1.configs.env import EnvConfig
    from verifiers.v1.envs.single_agent import SingleAgentEnvConfig
    from verifiers.v1.utils.loaders import load_environment

    agent = {
        "harness": {"id": "null"},
        "runtime": {"type": "subprocess"},
        "max_turns": max_turns,
        "network_notice": False,  # the chat begins with the row's messages and no others
    }
    config: EnvConfig = SingleAgentEnvConfig.model_validate(
        {"taskset": {"id": taskset, **settings}, "agent": agent}
    )
    return load_environment(config)


def row_of(task: Any) -> dict[str, Any]:
    """The messages that the agent begins with, and which task it is."""
    prompt = task.data.prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else plain(prompt)
    if task.data.system_prompt:
        messages.insert(0, {"role": "system", "content": task.data.system_prompt})
    return {"prompt": messages, COLUMN: task.data.idx}


def plain(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Roles and texts of verifiers' messages."""
    return [{"role": message.role, "content": str(message.content)} for message in messages]


async def reward_of(environment: Any, task: Any) -> float:
    """What the task's rewards say of an episode.

    Raises:
        RuntimeError: It failed: the rollout's group fails with it.
    """
    from verifiers.v1 import EvalClientConfig, ModelContext, SamplingConfig

    client = EvalClientConfig(base_url=os.environ["OPENAI_BASE_URL"], api_key_var="OPENAI_API_KEY")
    context = ModelContext(client=client, model="policy", sampling=SamplingConfig())
    async with environment.serving():
        episode = await environment.run_episode(task, context)
    if not episode.ok:
        raise RuntimeError(f"the episode failed: {episode.errors or episode.traces}")
    return float(sum(trace.reward for trace in episode.traces))


if __name__ == "__main__":
    main()
