"""Groups of rollouts on their way from role to role: asked for, sampled, scored.

Bulk data never passes the controller: a role hands back *references* (`Ref`), which the next role
resolves where it runs. The controller holds lengths, scores and references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, TypeAlias

from rlhf_ray.errors import FailureCause
from rlhf_ray.shared_prompts import PromptShare
from rlhf_ray.types import Prompt, RolloutSummary, Score

# Opaque to the loops: Ray's ObjectRef in a cluster, the value itself in a fake.
Ref: TypeAlias = Any
# A rollout among all: its draw, and its number among the draw's samples.
SampleId: TypeAlias = tuple[int, int]
# A role's arrays, one reference a rank: each resolves to `{sample id: array}`.
SampleArrays: TypeAlias = Sequence[Ref]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """All samples of one draw.

    Attributes:
        prompt: What is answered.
        draw: Its position in the order of the data, which tells this use of it from others.
        seeds_G: One a sample: the same seed and prompt give the same sample.
        temperature: 0 is greedy.
        newest_version: Of the weights that a wave may be sampled from; None for any.
    """

    prompt: Prompt
    draw: int
    seeds_G: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    newest_version: int | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The samples of one draw, in the object store, and what the controller may know of them.

    Attributes:
        prompt: What was answered.
        draw: Its position in the order of the data, never used twice: the same prompt drawn again
            is another group.
        summaries_G: Of its samples, or of those that are looked at; G then counts these.
        rollouts: Resolves to the list of all its `Rollout`s.
        failed: Why its environment failed, once a try.
    """

    prompt: Prompt
    draw: int
    summaries_G: tuple[RolloutSummary, ...]
    rollouts: Ref
    failed: tuple[FailureCause, ...] = ()

    @classmethod
    def unsampled(cls, prompt: Prompt, draw: int, failed: tuple[FailureCause, ...]) -> RolloutGroup:
        """One without samples, as its environment failed at every try."""
        return cls(prompt=prompt, draw=draw, summaries_G=(), rollouts=None, failed=failed)

    @property
    def samples_G(self) -> tuple[SampleId, ...]:
        """What tells each sample from all others."""
        return tuple((self.draw, summary.sample) for summary in self.summaries_G)

    @property
    def prompts_G(self) -> tuple[PromptShare, ...]:
        """What each sample begins with, for plans."""
        return tuple(
            PromptShare(prompt=self.draw, num_tokens=summary.num_prompt_tokens)
            for summary in self.summaries_G
        )

    def where(self, keeps_G: Sequence[bool]) -> RolloutGroup:
        """The same with some of its samples."""
        return replace(self, summaries_G=tuple(compress(self.summaries_G, keeps_G)))


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """A group with what the reward role says of each of its samples.

    Attributes:
        failed: Why it could not be scored, once a try.
        is_skipped: Whether no try succeeded, at sampling or at scoring it: no sample has a score.
    """

    group: RolloutGroup
    scores_G: tuple[Score, ...]
    failed: tuple[FailureCause, ...] = ()
    is_skipped: bool = False

    @classmethod
    def skipped(cls, group: RolloutGroup, failed: tuple[FailureCause, ...]) -> ScoredGroup:
        """One that nobody could score."""
        scores_G = tuple(Score(total=None) for _ in group.summaries_G)
        return cls(group=group, scores_G=scores_G, failed=failed, is_skipped=True)

    def where(self, keeps_G: Sequence[bool]) -> ScoredGroup:
        """The same with some of its samples."""
        return replace(
            self,
            group=self.group.where(keeps_G),
            scores_G=tuple(compress(self.scores_G, keeps_G)),
        )
