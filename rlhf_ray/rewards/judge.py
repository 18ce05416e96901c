"""A language model as judge, behind OpenAI's protocol of chats: its grade is the score.

Each completion is put into a prompt of its own, and asked about as often as there are votes; the
score is the mean of those that could be read. LLM-as-a-judge: arXiv 2306.05685.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import aiohttp

from rlhf_ray.config.rewards import JudgeConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.rewards.batch import Messages, RewardError, Scores, ScoringBatch, completion_text
from rlhf_ray.rewards.service import Retry, Service

# Between the seeds of a vote's attempts: with the same one it would be answered alike.
_SEEDS_APART = 1009


class Judge:
    """Scores by a model's grades; all methods are for one event loop."""

    def __init__(self, config: JudgeConfig) -> None:
        """Read the token from the environment.

        Raises:
            ConfigError: The variable that `token_env` names is not set here.
        """
        self._config, self._pattern = config, re.compile(config.pattern)
        url = f"{config.url.rstrip('/')}/chat/completions"
        self._service = Service(config, url, key="reward.judge", most_requests=config.requests)

    async def score(self, seed: int, batch: ScoringBatch) -> Scores:
        """The grades of all rows; the same `seed` asks the same.

        Raises:
            RewardError: Of a row's votes no more than half could be read.
        """
        async with self._service.session() as session:
            return list(
                await side_by_side(
                    self._score(session, batch, row, seed) for row in range(len(batch))
                )
            )

    async def _score(
        self, session: aiohttp.ClientSession, batch: ScoringBatch, row: int, seed: int
    ) -> float | None:
        prompt = prompt_of(self._config.template, batch, row)
        num_votes = self._config.votes
        votes = await side_by_side(
            self._vote(session, prompt, seed + row * num_votes + vote) for vote in range(num_votes)
        )
        grades = [vote for vote in votes if isinstance(vote, float)]
        if 2 * len(grades) <= num_votes:
            [last, *_] = [vote for vote in votes if isinstance(vote, RewardError)]
            raise RewardError(
                f"{last} ({len(grades)} of {num_votes} votes on a completion of prompt "
                f"{batch.prompt_ids_B[row]!r} could be read)"
            ) from last
        return fmean(grades)

    async def _vote(
        self, session: aiohttp.ClientSession, prompt: str, seed: int
    ) -> float | RewardError:
        """A grade, or why there is none."""

        def body(attempt: int) -> bytes:
            config = self._config
            request = {
                "model": config.model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": config.temperature,
                "max_tokens": config.max_tokens,
                # OpenAI's are below 2^63, some servers' below 2^31.
                "seed": (seed + _SEEDS_APART * attempt) % 2**31,
            }
            return json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")

        try:
            return await self._service.ask(session, body, self._grade)
        except RewardError as error:
            return error

    def _grade(self, answer: str) -> float:
        """What the pattern finds last in the text of an answer.

        Raises:
            Retry: Nothing that is a grade.
        """
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            said = self._service.excerpt(answer)
            raise self._service.error(f"must answer as OpenAI's chats do, got {said}") from error
        found = [match[1] for match in self._pattern.finditer(text or "")]
        if not found:
            raise Retry(f"no grade by the pattern in {self._service.excerpt(text or '')}")
        grade = grade_of(found[-1], self._config)
        if grade is None:
            raise Retry(f"{found[-1]!r} is no grade")
        return grade


def grade_of(text: str, config: JudgeConfig) -> float | None:
    """A word's score, or where a number stands from the worst grade, 0, to the best, 1."""
    if config.grades:
        return config.grades.get(text.strip().lower())
    try:
        number = float(text)
    except ValueError:
        return None
    share = (number - config.worst) / (config.best - config.worst)
    return share if 0 <= share <= 1 else None


def prompt_of(template: str, batch: ScoringBatch, row: int) -> str:
    """The template with a row's prompt, completion and columns in it."""
    columns = {name: values[row] for name, values in batch.columns.items()}
    own = {
        "prompt": _text(batch.prompts_B[row]),
        "completion": completion_text(batch.completions_B[row]),
    }
    values: Mapping[str, Any] = {**columns, **own}
    return template.format_map(values)


def _text(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    messages: Sequence[Mapping[str, str]] = prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
