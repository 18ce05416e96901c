"""A scorer behind HTTP: one POST a batch, with deadline, retries and back-off.

Asked `{"prompts": [...], "completions": [...], "columns": {"name": [...]}}`, it answers
`{"scores": [number or null, ...]}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from itertools import chain
from math import ceil
from typing import Any

import aiohttp

from rlhf_ray.config.rewards import RemoteRewardConfig
from rlhf_ray.config.tools.secrets import MASK, secrets_in_url
from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError, Scores, ScoringBatch, check_scores

# Keeps groups that are scored side by side from opening hundreds of connections at once.
_MAX_REQUESTS_IN_FLIGHT = 8
# However often a request failed, the service's return is noticed within this.
_MAX_BACKOFF_S = 30.0
# Not the process's own generator: functions draw from that behind their seeds.
_JITTER = random.Random()


class _Retry(Exception):
    """One attempt failed in a way that another may not."""


class RemoteScorer:
    """Scores by asking a service; all methods are for one event loop."""

    def __init__(self, config: RemoteRewardConfig) -> None:
        """Read the token from the environment.

        Raises:
            ConfigError: The variable that `token_env` names is not set here.
        """
        self._config = config
        self._token = os.environ.get(config.token_env, "") if config.token_env else ""
        if config.token_env and not self._token:
            raise ConfigError(
                f"reward.remote.token_env names {config.token_env!r}, "
                "which is not set in the environment"
            )
        self._secrets = [*secrets_in_url(config.url), *filter(None, [self._token])]
        self._free = asyncio.Semaphore(_MAX_REQUESTS_IN_FLIGHT)
        self._num_parts = 0  # that are asked about, or wait to be

    async def score(self, batch: ScoringBatch) -> Scores:
        """Score all rows, several requests at a time, counted over all calls.

        Raises:
            RewardError: A request failed for good, or was answered with something other than one
                finite number or null a row.
        """
        size = self._config.batch_size
        parts = [batch.part(begin, begin + size) for begin in range(0, len(batch), size)]
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        async with aiohttp.ClientSession(headers=headers) as session:
            scores = await side_by_side(self._in_order(session, part) for part in parts)
        return list(chain.from_iterable(scores))

    async def _in_order(self, session: aiohttp.ClientSession, part: ScoringBatch) -> Scores:
        """The scores of a part, once those before it leave room for a request."""
        self._num_parts += 1
        longest_s = (self._config.retries + 1) * (self._config.timeout_s + _MAX_BACKOFF_S)
        wait_s = ceil(self._num_parts / _MAX_REQUESTS_IN_FLIGHT) * longest_s
        try:
            async with deadline(wait_s, actor=self._name, operation="requests"), self._free:
                return await self._score_part(session, part)
        finally:
            self._num_parts -= 1

    async def _score_part(self, session: aiohttp.ClientSession, part: ScoringBatch) -> Scores:
        body = self._body(part)
        num_attempts = self._config.retries + 1
        for attempt in range(num_attempts):
            try:
                answer = await self._post(session, body)
            except _Retry as error:
                if attempt + 1 == num_attempts:
                    raise self._error(f"failed {num_attempts} times; last: {error}") from error
                # Jitter: requests that failed together should not come back together.
                backoff_s = self._config.backoff_s * 2**attempt * _JITTER.uniform(0.5, 1.5)
                await asyncio.sleep(min(backoff_s, _MAX_BACKOFF_S))
            else:
                return check_scores(self._scores(answer), part, self._name)
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> str:
        """One attempt.

        Raises:
            _Retry: No connection, no answer in time, or a status that may pass.
            RewardError: Any other status than 200.
        """
        try:
            async with session.post(
                self._config.url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
                allow_redirects=False,
            ) as response:
                answer = await response.text(errors="replace")
                status = response.status
        except aiohttp.InvalidURL:
            raise self._error("is not a valid URL") from None
        except TimeoutError as error:
            raise _Retry(f"no answer within {self._config.timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            # Not `from error`: its own text may hold the URL as it is.
            raise _Retry(self._hidden(f"{type(error).__name__}: {error}")) from None
        if status == 429 or status >= 500:
            raise _Retry(f"status {status}: {self._excerpt(answer)}")
        if status != 200:
            raise self._error(f"answered with status {status}: {self._excerpt(answer)}")
        return answer

    def _body(self, part: ScoringBatch) -> bytes:
        request = {
            "prompts": part.prompts_B,
            "completions": part.completions_B,
            "columns": part.columns,
        }
        try:
            return json.dumps(request, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise self._error(f"cannot be sent these columns as JSON: {error}") from error

    def _scores(self, answer: str) -> Any:
        try:
            parsed = json.loads(answer)
        except json.JSONDecodeError as error:
            raise self._error(f"did not answer in JSON: {self._excerpt(answer)}") from error
        if not isinstance(parsed, dict) or "scores" not in parsed:
            raise self._error(f'must answer with {{"scores": [...]}}, got {self._excerpt(answer)}')
        return parsed["scores"]

    @property
    def _name(self) -> str:
        """For errors, which end in logs."""
        return f"reward service {self._hidden(self._config.url)}"

    def _error(self, what: str) -> RewardError:
        return RewardError(f"{self._name} {what}")

    def _excerpt(self, answer: str) -> str:
        """The answer's beginning, without what is secret, should the service repeat it."""
        return repr(self._hidden(answer)[:200])

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text
