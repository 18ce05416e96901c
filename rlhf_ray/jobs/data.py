"""What a job reads before anything starts: tokenizer and rows, and whether its models take them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_ray.config.base import ForwardConfig, ModelConfig
from rlhf_ray.data.order import TrainedRows
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.disk import room_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

AnyRows: TypeAlias = Rows[Any] | RowStream[Any]


@dataclass(frozen=True, kw_only=True)
class JobData:
    """What is read before anything starts.

    Attributes:
        tokenizer: Of the model that is trained.
    """

    tokenizer: PreTrainedTokenizerBase

    @property
    def trained_rows(self) -> TrainedRows[Any]:
        """What the job trains on."""
        raise NotImplementedError

    def keep_tokenizer(self, folder: str) -> None:
        """Write the run's copy, with padding token and chat template set."""
        with room_for("the tokenizer", Path(folder)):
            self.tokenizer.save_pretrained(folder)


def end_token_ids(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """What ends a response; the log says so."""
    from rlhf_ray.data.chat.turn_end import end_tokens
    from rlhf_ray.models.identity import generation_end_ids

    ends = end_tokens(tokenizer, generation_end_ids(model), stop_token_ids)
    logger.info("responses end at %s", ends.words)
    return ends.ids


def check_vocabularies(
    policy: ModelConfig, tokenizer: PreTrainedTokenizerBase, others: Mapping[str, ForwardConfig]
) -> None:
    """Whether the models of other roles have the policy's vocabulary.

    Raises:
        ConfigError: One has another.
    """
    from rlhf_ray.models import vocabulary

    named = {f"{role}.model.path": config.model for role, config in others.items()}
    vocabulary.check_vocabularies(policy, tokenizer, named)
