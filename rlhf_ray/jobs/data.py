"""What a job reads before anything starts: tokenizer and rows, and whether its models take them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf_ray.config.base import ModelConfig
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

    generation_ids = generation_end_ids(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    ends = end_tokens(tokenizer, generation_ids, stop_token_ids)
    logger.info("responses end at %s", ends.words)
    return ends.ids
