"""A scorer behind HTTP: one POST a batch.

Asked `{"prompts": [...], "completions": [...], "columns": {"name": [...]}}`, it answers
`{"scores": [number or null, ...]}`.
"""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import aiohttp

from rlhf_ray.config.rewards import RemoteRewardConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.rewards.batch import Scores, ScoringBatch, check_scores
from rlhf_ray.rewards.service import Service

_MAX_REQUESTS_IN_FLIGHT = 8


class RemoteScorer:
    """Scores by asking a service; all methods are for one event loop."""

    def __init__(self, config: RemoteRewardConfig) -> None:
        """Read the token from the environment.

        Raises:
            ConfigError: The variable that `token_env` names is not set here.
        """
        self._config = config
        self._service = Service(
            config, config.url, key="reward.remote", most_requests=_MAX_REQUESTS_IN_FLIGHT
        )

    async def score(self, batch: ScoringBatch) -> Scores:
        """Score all rows, several requests at a time, counted over all calls.

        Raises:
            RewardError: A request failed for good, or was answered with something other than one
                finite number or null a row.
        """
        size = self._config.batch_size
        parts = [batch.part(begin, begin + size) for begin in range(0, len(batch), size)]
        async with self._service.session() as session:
            scores = await side_by_side(self._of_part(session, part) for part in parts)
        return list(chain.from_iterable(scores))

    async def _of_part(self, session: aiohttp.ClientSession, part: ScoringBatch) -> Scores:
        body = self._body(part)

        def read(answer: str) -> Scores:
            return check_scores(self._scores(answer), part, self._service.name)

        return await self._service.ask(session, lambda attempt: body, read)

    def _body(self, part: ScoringBatch) -> bytes:
        request = {
            "prompts": part.prompts_B,
            "completions": part.completions_B,
            "columns": part.columns,
        }
        try:
            return json.dumps(request, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise self._service.error(f"cannot be sent these columns as JSON: {error}") from error

    def _scores(self, answer: str) -> Any:
        try:
            parsed = json.loads(answer)
        except json.JSONDecodeError as error:
            said = self._service.excerpt(answer)
            raise self._service.error(f"did not answer in JSON: {said}") from error
        if not isinstance(parsed, dict) or "scores" not in parsed:
            said = self._service.excerpt(answer)
            raise self._service.error(f'must answer with {{"scores": [...]}}, got {said}')
        return parsed["scores"]
