"""What ends a response, as a job has it: it travels with each call to an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.rollout import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What ends a response.

    Attributes:
        stop: Strings; the tokens that spell them are part of the response and its text.
        stop_token_ids: Tokens that the configuration names.
        end_token_ids: Those that end a turn: part of the response, not of its text.
        ignore_eos: Whether `end_token_ids`, and those that vLLM finds itself, end nothing.
    """

    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    end_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @classmethod
    def of(cls, config: RolloutConfig, end_token_ids: Sequence[int]) -> Ending:
        """What the configuration says, and what tokenizer, model and template say."""
        return cls(
            stop=tuple(config.stop),
            stop_token_ids=tuple(config.stop_token_ids),
            end_token_ids=tuple(end_token_ids),
            ignore_eos=config.ignore_eos,
        )

    @property
    def token_ids(self) -> list[int]:
        """All tokens that end a response, as vLLM's `stop_token_ids` takes them."""
        ends = () if self.ignore_eos else self.end_token_ids
        return sorted({*self.stop_token_ids, *ends})
