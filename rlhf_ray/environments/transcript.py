"""What was said in a rollout, token by token: pure.

A turn is asked with the tokens so far, those that the engine gave and those that stood between.
Nothing is decoded and encoded again: a text has many tokenizations, and a policy is trained on the
tokens that it sampled, behind the tokens that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rlhf_ray.environments.protocol import Message, Step
from rlhf_ray.types import FinishReason, Prompt, Rollout, Turn

# What stands for the version and the log-probability of a token that no policy sampled.
NO_VERSION, NO_LOGPROB = -1, 0.0


@dataclass(kw_only=True)
class Transcript:
    """A rollout in the making: own turns and an environment's tokens take turns.

    Attributes:
        prompt: What it begins with.
        draw: The prompt's position in the order of the data.
        sample: Index among the draw's samples.
        max_new_tokens: Of the policy's own, over all turns.
        max_tokens: Of everything, the prompt included: what the engine's context takes.
    """

    prompt: Prompt
    draw: int
    sample: int
    max_new_tokens: int
    max_tokens: int
    _ids_T: list[int] = field(default_factory=list)
    _logprobs_T: list[float] = field(default_factory=list)
    _versions_T: list[int] = field(default_factory=list)
    _is_own_T: list[bool] = field(default_factory=list)
    _turns: list[Turn] = field(default_factory=list)
    _messages: list[Message] = field(default_factory=list)
    # What the last turn's reward is, should no other turn be answered.
    _if_last: tuple[int, float] | None = None
    # Tokens and messages up to the end of the last own turn.
    _own_end: tuple[int, int] = (0, 0)

    @property
    def token_ids_T(self) -> list[int]:
        """What the next turn is asked with: the prompt, and all tokens so far."""
        return [*self.prompt.token_ids_T, *self._ids_T]

    @property
    def num_turns(self) -> int:
        """Of the policy."""
        return len(self._turns)

    @property
    def room(self) -> int:
        """How many tokens the next turn may have; 0 where there can be none."""
        num_own = sum(turn.num_tokens for turn in self._turns)
        in_context = self.max_tokens - len(self.prompt.token_ids_T) - len(self._ids_T)
        return max(0, min(self.max_new_tokens - num_own, in_context))

    @property
    def last_id(self) -> int:
        """The token that the last turn ended with."""
        return self._ids_T[-1]

    def own(
        self,
        ids_T: Sequence[int],
        logprobs_T: Sequence[float],
        versions_T: Sequence[int],
        text: str,
    ) -> None:
        """Add a turn of the policy, as the engine gave it; `text` is without the end token.

        Raises:
            ValueError: It has no tokens or more than there is room for, arrays do not agree, or
                the policy spoke last.
        """
        lens = (len(ids_T), len(logprobs_T), len(versions_T))
        if len(set(lens)) > 1:
            raise ValueError(f"ids, log-probabilities and versions must be as many, got {lens}")
        if not 1 <= len(ids_T) <= self.room:
            raise ValueError(f"a turn must have 1 to {self.room} tokens, got {len(ids_T)}")
        if self._turns and self._own_end[0] == len(self._ids_T):
            raise ValueError("an environment's tokens must stand between two turns, got none")
        self._add(ids_T, logprobs_T, versions_T, is_own=True)
        self._turns.append(Turn(num_tokens=len(ids_T)))
        self._messages.append({"role": "assistant", "content": text})
        self._own_end = (len(self._ids_T), len(self._messages))

    def came_of_it(
        self, step: Step, messages: Sequence[Message], *, environment_s: float = 0.0
    ) -> None:
        """Note what came of the last turn, but for the tokens that follow it.

        Args:
            step: What the environment said.
            messages: Its messages, as the policy is shown them.
            environment_s: What it took.

        Raises:
            ValueError: There is no turn.
        """
        if not self._turns:
            raise ValueError("a step must come of a turn, got none")
        self._turns[-1] = replace(
            self._turns[-1],
            reward=step.reward,
            num_calls=step.num_calls,
            num_failed_calls=step.num_failed_calls,
            environment_s=environment_s,
        )
        if_last = step.reward_if_last
        self._if_last = None if if_last is None else (len(self._turns) - 1, if_last)
        self._messages += messages

    def between(self, ids_T: Sequence[int]) -> None:
        """Add tokens that the policy did not write: what stands before its next turn."""
        num = len(ids_T)
        self._add(ids_T, [NO_LOGPROB] * num, [NO_VERSION] * num, is_own=False)

    def rollout(
        self, finish_reason: FinishReason, *, decode: Callable[[Sequence[int]], str]
    ) -> Rollout:
        """The rollout of all turns; what stands behind the last one is left out.

        Args:
            finish_reason: `length` where a turn, or there being another one, would have exceeded a
                limit.
            decode: The text that response tokens add to the prompt's.

        Raises:
            ValueError: There is no turn.
        """
        if not self._turns:
            raise ValueError("a rollout must have a turn, got none")
        num_tokens, num_messages = self._own_end
        return Rollout(
            prompt=self.prompt,
            draw=self.draw,
            sample=self.sample,
            response_ids_T=np.array(self._ids_T[:num_tokens], dtype=np.int32),
            logprobs_T=np.array(self._logprobs_T[:num_tokens], dtype=np.float32),
            versions_T=np.array(self._versions_T[:num_tokens], dtype=np.int32),
            action_mask_T=np.array(self._is_own_T[:num_tokens], dtype=np.bool_),
            finish_reason=finish_reason,
            text=decode(self._ids_T[:num_tokens]),
            turns=self._rewarded(finish_reason),
            messages=tuple(self._messages[:num_messages]),
        )

    def _rewarded(self, finish_reason: FinishReason) -> tuple[Turn, ...]:
        """The turns with what the environment gave for them, as it turned out."""
        turns = list(self._turns)
        if finish_reason == "length" and self._if_last is not None:
            answered, reward = self._if_last  # the last that was: one behind it was cut
            turns[answered] = replace(turns[answered], reward=reward)
        return tuple(turns)

    def _add(
        self,
        ids_T: Sequence[int],
        logprobs_T: Sequence[float],
        versions_T: Sequence[int],
        *,
        is_own: bool,
    ) -> None:
        self._ids_T += ids_T
        self._logprobs_T += logprobs_T
        self._versions_T += versions_T
        self._is_own_T += [is_own] * len(ids_T)
