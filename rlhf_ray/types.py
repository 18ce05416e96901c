"""What crosses a boundary between actors: frozen records of one sequence each.

Dimensions, used as suffixes of arrays and lists all over the project:

====  ==========================================================
`B`   sequences
`P`   prompts
`G`   samples of one prompt
`K`   answers of one ranking
`T`   tokens of one sequence, or of several laid end to end
`V`   vocabulary
`D`   hidden size of a model
====  ==========================================================

Arrays are NumPy, so that Ray hands them over without a copy and the driver needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, tokenized.

    Example: `Prompt(prompt_id="train:17", token_ids_T=(1, 403), text="Once", columns={})`.

    Attributes:
        prompt_id: Never changes: the data set's name and the row's number in it.
        token_ids_T: What the engine is given, chat template and all.
        text: The user's own prompt (a string, or chat messages), as reward functions get it.
        columns: The row's other columns, handed to reward functions by name.
        opens_reasoning: Whether it ends inside of a block of reasoning, as templates do that write
            `<think>` themselves.
    """

    prompt_id: str
    token_ids_T: tuple[int, ...]
    text: str | list[dict[str, str]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    opens_reasoning: bool = False


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the policy said at a stretch in an environment, and what came of it.

    Attributes:
        num_tokens: Of the policy's own, at least 1.
        reward: The environment's, for this turn; the turn's last own token carries it. None where
            it gave none, which is no 0: see `Rollout.environment_reward`.
        num_calls: Of tools, those that failed included.
        num_failed_calls: Calls that could not be read, or whose tool raised or took too long.
        environment_s: What the environment took to answer it.
    """

    num_tokens: int
    reward: float | None = None
    num_calls: int = 0
    num_failed_calls: int = 0
    environment_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response to one prompt; in an environment, all turns and what stands between.

    Attributes:
        prompt: What was answered.
        draw: The prompt's position in the order of the data, never used twice: the same prompt
            drawn again is another draw. All samples of a draw are a group.
        sample: Index among the draw's samples, 0 to G - 1.
        response_ids_T: Tokens after the prompt, the end token included where the policy wrote one.
            The last one is the policy's own.
        logprobs_T: Log-probability (nats) of each response token under the engine's weights and
            temperature at the time it was sampled; 0 for tokens that it did not sample.
        versions_T: Version of the weights that sampled each token; -1 for those that none did.
        action_mask_T: True for the policy's own tokens, False for others (a tool's answer).
        finish_reason: `stop` (end token or stop string) or `length` (cut off).
        text: What the response adds to the text of its prompt: both are decoded together, special
            tokens as sampled, and cut at the border. The token that ended it is no part of it.
        turns: In an environment, in their order; their tokens are all of the policy's own. Empty
            without one.
        messages: What was said after the prompt, turn by turn: each a `role` and `content`. Empty
            without an environment.
    """

    prompt: Prompt
    draw: int
    sample: int
    response_ids_T: IntArray
    logprobs_T: FloatArray
    versions_T: IntArray
    action_mask_T: BoolArray
    finish_reason: FinishReason
    text: str
    turns: tuple[Turn, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens together."""
        return len(self.prompt.token_ids_T) + len(self.response_ids_T)

    @property
    def own_ids_T(self) -> IntArray:
        """The response's tokens that the policy wrote."""
        return self.response_ids_T[self.action_mask_T]

    @property
    def environment_reward(self) -> float | None:
        """Sum over turns that have a reward; None where none has."""
        rewards = [turn.reward for turn in self.turns if turn.reward is not None]
        return sum(rewards) if rewards else None


@dataclass(frozen=True, kw_only=True)
class RolloutSummary:
    """What the controller may know of a rollout without holding its tokens.

    Attributes:
        sample: Index among the draw's samples.
        num_action_tokens: Of the response, those that the policy wrote.
        version_min: Of the versions that sampled the policy's own tokens, as are the other two.
        environment_reward: As `Rollout.environment_reward`.
        num_turns: As all that follows, 0 without an environment.
    """

    sample: int
    num_prompt_tokens: int
    num_response_tokens: int
    num_action_tokens: int
    finish_reason: FinishReason
    version_min: int
    version_max: int
    version_sum: int
    environment_reward: float | None = None
    num_turns: int = 0
    num_calls: int = 0
    num_failed_calls: int = 0
    environment_s: float = 0.0

    @classmethod
    def of(cls, rollout: Rollout) -> RolloutSummary:
        """That of a rollout, which has a token of the policy's own at least."""
        own_versions_T = rollout.versions_T[rollout.action_mask_T]
        return cls(
            sample=rollout.sample,
            num_prompt_tokens=len(rollout.prompt.token_ids_T),
            num_response_tokens=len(rollout.response_ids_T),
            num_action_tokens=len(own_versions_T),
            finish_reason=rollout.finish_reason,
            version_min=int(own_versions_T.min()),
            version_max=int(own_versions_T.max()),
            version_sum=int(own_versions_T.sum()),
            environment_reward=rollout.environment_reward,
            num_turns=len(rollout.turns),
            num_calls=sum(turn.num_calls for turn in rollout.turns),
            num_failed_calls=sum(turn.num_failed_calls for turn in rollout.turns),
            environment_s=sum(turn.environment_s for turn in rollout.turns),
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and response tokens together."""
        return self.num_prompt_tokens + self.num_response_tokens


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A rollout with everything that a policy or value update needs.

    All arrays have the length of `rollout.response_ids_T`; what stands for tokens that are not the
    policy's own is not looked at.

    Attributes:
        rollout: Tokens and behaviour log-probabilities.
        old_logprobs_T: Log-probabilities under the policy before this step's update; zeros where
            its own pass has them (`algorithm.old_logprobs`).
        reference_logprobs_T: Under the reference model; zeros where no KL is asked for.
        values_T: The critic's estimate before the update; zeros without a critic.
        advantages_T: Final advantages, normalised.
        returns_T: Targets of the critic; zeros without one.
    """

    rollout: Rollout
    old_logprobs_T: FloatArray
    reference_logprobs_T: FloatArray
    values_T: FloatArray
    advantages_T: FloatArray
    returns_T: FloatArray

    @property
    def num_tokens(self) -> int:
        """Of its rollout: prompt and response together."""
        return self.rollout.num_tokens


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the reward role says of one rollout.

    Attributes:
        total: The weighted sum that is trained on; `None` where no function applied: such a rollout
            is not trained.
        parts: Each reward function's own value by name; `None` where it did not apply.
        is_cut: Whether the reward model saw the text's beginning alone; None without such a model.
    """

    total: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    is_cut: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SftExample:
    """A token sequence with the tokens that are trained.

    Attributes:
        example_id: Data set's name and row number.
        token_ids_T: The whole sequence.
        trained_T: True for tokens whose prediction is in the loss (a response, an assistant turn).
    """

    example_id: str
    token_ids_T: IntArray
    trained_T: BoolArray

    @property
    def num_tokens(self) -> int:
        """Of the whole sequence."""
        return len(self.token_ids_T)

    @property
    def num_prompt_tokens(self) -> int:
        """Of a prompt with other answers: there is none."""
        return 0

    @property
    def lengths_K(self) -> tuple[int, ...]:
        """Tokens of the one sequence."""
        return (self.num_tokens,)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens whose prediction is in the loss."""
        return int(self.trained_T.sum())


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Answers to one prompt, the best first; a preference pair is a ranking of two.

    One of a single answer asks for no more than its score.

    Example: `Ranking(example_id="pairs:3", prompt_ids_T=..., answer_ids_K=(chosen, rejected))`.

    Attributes:
        example_id: Data set's name and row number.
        prompt_ids_T: What every answer follows.
        answer_ids_K: Each with its end token where it was not cut.
        margin: By how much the first of a pair is better, where the data says so; else 0.
        tiers_K: The tier of each answer, 0 for the best; answers of one tier are ties. Empty where
            there are none: then each answer is better than the next.
    """

    example_id: str
    prompt_ids_T: IntArray
    answer_ids_K: tuple[IntArray, ...]
    margin: float = 0.0
    tiers_K: tuple[int, ...] = ()

    @property
    def order_K(self) -> tuple[int, ...]:
        """The tier of each answer, ties or none."""
        return self.tiers_K or tuple(range(len(self.answer_ids_K)))

    @property
    def lengths_K(self) -> tuple[int, ...]:
        """Tokens of each sequence: an answer comes with a prompt of its own."""
        return tuple(len(self.prompt_ids_T) + len(answer) for answer in self.answer_ids_K)

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return sum(self.lengths_K)

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt, with which each sequence begins."""
        return len(self.prompt_ids_T)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(answer) for answer in self.answer_ids_K)


@dataclass(frozen=True, kw_only=True)
class LabelledAnswer:
    """One answer that was found good or bad, without another to compare it with (KTO).

    Attributes:
        example_id: Data set's name and row number.
        prompt_ids_T: What the answer follows.
        answer_ids_K: The answer, and the answer to another prompt, from which KTO estimates the KL
            (https://arxiv.org/abs/2402.01306, section 4.2).
        desirable: Whether it was found good.
    """

    example_id: str
    prompt_ids_T: IntArray
    answer_ids_K: tuple[IntArray, IntArray]
    desirable: bool

    @property
    def lengths_K(self) -> tuple[int, ...]:
        """Tokens of each sequence: an answer comes with a prompt of its own."""
        return tuple(len(self.prompt_ids_T) + len(answer) for answer in self.answer_ids_K)

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return sum(self.lengths_K)

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt, with which each sequence begins."""
        return len(self.prompt_ids_T)

    @property
    def num_trained_tokens(self) -> int:
        """Tokens of the answer proper."""
        return len(self.answer_ids_K[0])


@dataclass(frozen=True, kw_only=True)
class Referenced:
    """A row of answers with what the frozen reference says of them.

    Attributes:
        row: The answers.
        reference_logps_K: Sum of the log-probabilities (nats) of each answer's tokens; zeros where
            the loss takes no reference.
    """

    row: Ranking | LabelledAnswer
    reference_logps_K: tuple[float, ...]

    @property
    def lengths_K(self) -> tuple[int, ...]:
        """Tokens of each sequence."""
        return self.row.lengths_K

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return self.row.num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt, with which each sequence begins."""
        return self.row.num_prompt_tokens

    @property
    def num_trained_tokens(self) -> int:
        """Tokens of the answers that are trained."""
        return self.row.num_trained_tokens
