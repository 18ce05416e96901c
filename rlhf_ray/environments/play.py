"""A policy in an environment, turn by turn, until one of them or a limit ends it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from rlhf_ray.data.chat.borders import response_text
from rlhf_ray.deadlines import DeadlineError, deadline
from rlhf_ray.environments.protocol import Environment, Step
from rlhf_ray.environments.transcript import Transcript
from rlhf_ray.environments.turns import TurnTemplate, shortened_message
from rlhf_ray.errors import FailureCause, GroupFailed
from rlhf_ray.types import FinishReason, Rollout

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampledTurn:
    """What an engine gives for a turn.

    Attributes:
        ids_T: Tokens, the one that ended the turn included.
        logprobs_T: Their log-probabilities (nats) as they were sampled.
        versions_T: Of the weights that sampled each.
        is_cut: Whether it ran out of tokens.
    """

    ids_T: Sequence[int]
    logprobs_T: Sequence[float]
    versions_T: Sequence[int]
    is_cut: bool


# Token ids so far, and the most new ones -> the next turn.
Sample: TypeAlias = Callable[[list[int], int], Awaitable[SampledTurn]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one rollout.

    Attributes:
        max_turns: Of the policy.
        max_observation_tokens: Of each message of the environment; longer ones are cut.
        timeout_s: For each answer of the environment.
    """

    max_turns: int
    max_observation_tokens: int
    timeout_s: float


async def play(
    environment: Environment,
    sample: Sample,
    transcript: Transcript,
    template: TurnTemplate,
    limits: Limits,
    *,
    seed: int,
) -> Rollout:
    """The rollout that comes of a prompt; the environment is closed, whatever happens.

    A `close` that is late behind the last turn is logged: the rollout is whole.

    A turn that was cut is not shown to the environment: it is no answer. Then, and where a limit
    leaves no room for another turn, the rollout ends by `length`.

    Args:
        environment: A new one.
        sample: Asks the engine.
        transcript: An empty one.
        template: What stands between turns.
        limits: What ends it.
        seed: The environment's; the same for all samples of a draw, which begin alike.

    Raises:
        GroupFailed: It raised, was late, or sent messages that the template or the tokenizer
            refuses; names draw, sample and turn, and the cause.
    """
    prompt = transcript.prompt
    where = f"draw {transcript.draw}, sample {transcript.sample}, prompt {prompt.prompt_id!r}"
    ask = partial(_asked, where=where, timeout_s=limits.timeout_s)
    try:
        await ask(partial(environment.reset, prompt, seed), "reset")
        reason = await _turns(environment, sample, transcript, template, limits, ask, where)
    except BaseException:
        with contextlib.suppress(GroupFailed):  # it has failed before
            await ask(environment.close, "close")
        raise
    try:
        await ask(environment.close, "close")
    except GroupFailed as failed:
        if failed.cause != "hung":
            raise
        logger.warning("%s; its rollout is whole, and is taken", failed)
    return transcript.rollout(
        reason, decode=lambda ids_T: _text(template, prompt.token_ids_T, ids_T)
    )


async def _turns(
    environment: Environment,
    sample: Sample,
    transcript: Transcript,
    template: TurnTemplate,
    limits: Limits,
    ask: Callable[[Callable[[], Awaitable[Any]], str], Awaitable[Any]],
    where: str,
) -> FinishReason:
    while transcript.room and transcript.num_turns < limits.max_turns:
        asked_T = transcript.token_ids_T
        turn = await sample(asked_T, transcript.room)
        answer = _text(template, asked_T, turn.ids_T)
        transcript.own(turn.ids_T, turn.logprobs_T, turn.versions_T, answer)
        if turn.is_cut:
            return "length"
        started_s = time.monotonic()
        operation = f"turn {transcript.num_turns}"
        step: Step = await ask(partial(environment.step, answer), operation)
        # A template, and what it is shown, may be the user's too.
        with _failures(f"{operation}: its messages cannot be shown", where):
            messages = tuple(
                shortened_message(template.tokenizer, message, limits.max_observation_tokens)
                for message in step.messages
            )
            transcript.came_of_it(step, messages, environment_s=time.monotonic() - started_s)
            if step.is_done:
                return "stop"
            transcript.between(template.tokens(transcript.last_id, messages))
    return "length"


async def _asked(
    ask: Callable[[], Awaitable[Any]], operation: str, *, where: str, timeout_s: float
) -> Any:
    with _failures(operation, where):
        async with deadline(timeout_s, actor="the environment", operation=operation):
            return await ask()


@contextmanager
def _failures(operation: str, where: str) -> Iterator[None]:
    """User code may raise anything in here; whoever waits for the group hears of it."""
    try:
        yield
    except Exception as error:
        cause, detail = _cause_of(error)
        message = f"environment ({where}): {operation}: {detail}"
        raise GroupFailed.of(message, cause=cause) from error


def _cause_of(error: Exception) -> tuple[FailureCause, str]:
    if isinstance(error, GroupFailed):  # of an environment in another process
        return error.cause, str(error)
    cause: FailureCause = "hung" if isinstance(error, DeadlineError) else "raised"
    return cause, f"{type(error).__name__}: {error}"


def _text(template: TurnTemplate, before_T: Sequence[int], ids_T: Sequence[int]) -> str:
    return response_text(template.tokenizer, before_T, ids_T, end_ids=template.end_ids)
