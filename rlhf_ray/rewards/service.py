"""A service behind HTTP: one POST a question, with deadline, retries and back-off."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from math import ceil
from typing import TypeVar

import aiohttp

from rlhf_ray.config.rewards import ServiceConfig
from rlhf_ray.config.tools.secrets import MASK, secrets_in_url
from rlhf_ray.deadlines import DeadlineError, deadline
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.batch import RewardError

T = TypeVar("T")

# However often a request failed, the service's return is noticed within this.
_MAX_BACKOFF_S = 30.0
# Not the process's own generator: functions draw from that behind their seeds.
_JITTER = random.Random()


class Retry(Exception):
    """One attempt failed in a way that another may not."""


class Service:
    """Asks one; all methods are for one event loop.

    Attributes:
        name: For errors, which end in logs.
    """

    def __init__(self, config: ServiceConfig, url: str, *, key: str, most_requests: int) -> None:
        """Read the token from the environment.

        Args:
            config: Of retries and deadlines.
            url: Where questions go.
            key: Of `config`, for errors.
            most_requests: At a time: groups that are scored side by side would open hundreds.

        Raises:
            ConfigError: The variable that `token_env` names is not set here.
        """
        self._config, self._url = config, url
        token = os.environ.get(config.token_env, "") if config.token_env else ""
        if config.token_env and not token:
            raise ConfigError(
                f"{key}.token_env names {config.token_env!r}, which is not set in the environment"
            )
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._secrets = [*secrets_in_url(url), *filter(None, [token])]
        self.name = f"reward service {self._hidden(url)}"
        self._most_requests = most_requests
        self._free = asyncio.Semaphore(most_requests)
        self._num_asked = 0  # questions that are asked, or wait to be

    def session(self) -> aiohttp.ClientSession:
        """For the questions about one group."""
        return aiohttp.ClientSession(headers=self._headers)

    async def ask(
        self,
        session: aiohttp.ClientSession,
        body: Callable[[int], bytes],
        read: Callable[[str], T],
    ) -> T:
        """What `read` makes of the answer, once those asked before leave room for a request.

        Args:
            session: Of `session`.
            body: The question in the first attempt, 0, and in those after it.
            read: Raises `Retry` where another attempt may be answered otherwise.

        Raises:
            RewardError: Every attempt failed, or one for good.
        """
        self._num_asked += 1
        longest_s = (self._config.retries + 1) * (self._config.timeout_s + _MAX_BACKOFF_S)
        wait_s = ceil(self._num_asked / self._most_requests) * longest_s
        try:
            async with deadline(wait_s, actor=self.name, operation="requests"), self._free:
                return await self._try(session, body, read)
        except DeadlineError as error:
            raise RewardError.of(str(error), cause="hung") from error
        finally:
            self._num_asked -= 1

    async def _try(
        self,
        session: aiohttp.ClientSession,
        body: Callable[[int], bytes],
        read: Callable[[str], T],
    ) -> T:
        num_attempts = self._config.retries + 1
        for attempt in range(num_attempts):
            try:
                return read(await self._post(session, body(attempt)))
            except Retry as error:
                if attempt + 1 == num_attempts:
                    raise self.error(f"failed {num_attempts} times; last: {error}") from error
                # Jitter: requests that failed together should not come back together.
                backoff_s = self._config.backoff_s * 2**attempt * _JITTER.uniform(0.5, 1.5)
                await asyncio.sleep(min(backoff_s, _MAX_BACKOFF_S))
        raise AssertionError("the last attempt returns or raises")

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> str:
        """One attempt.

        Raises:
            Retry: No connection, no answer in time, or a status that may pass.
            RewardError: Any other status than 200.
        """
        try:
            async with session.post(
                self._url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
                allow_redirects=False,
            ) as response:
                answer = await response.text(errors="replace")
                status = response.status
        except aiohttp.InvalidURL:
            raise self.error("is not a valid URL") from None
        except TimeoutError as error:
            raise Retry(f"no answer within {self._config.timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            # Not `from error`: its own text may hold the URL as it is.
            raise Retry(self._hidden(f"{type(error).__name__}: {error}")) from None
        if status == 429 or status >= 500:
            raise Retry(f"status {status}: {self.excerpt(answer)}")
        if status != 200:
            raise self.error(f"answered with status {status}: {self.excerpt(answer)}")
        return answer

    def error(self, what: str) -> RewardError:
        """Of this service."""
        return RewardError(f"{self.name} {what}")

    def excerpt(self, answer: str) -> str:
        """The answer's beginning, without what is secret, should the service repeat it."""
        return repr(self._hidden(answer)[:200])

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text
