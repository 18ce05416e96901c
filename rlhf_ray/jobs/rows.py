"""What a job reads before anything starts: its tokenizer and its data sets, as it takes them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.data.examples.lengths import LengthLimit
from rlhf_ray.data.examples.preferences import LabelledAnswers, check_labels
from rlhf_ray.data.examples.tokenization import Tokenization
from rlhf_ray.data.loading.load import first_examples, load, open_passes, open_stream
from rlhf_ray.data.loading.passes import Check, Passes
from rlhf_ray.data.order import TrainedRows
from rlhf_ray.data.rows.report import LeftOut, Loaded, RowReport, merged
from rlhf_ray.data.rows.rows import Numbers, Rows
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.disk import room_for
from rlhf_ray.rewards.functions import (
    RewardFunction,
    check_columns,
    checking_functions,
    prompt_faults,
    usable_prompts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

AnyRows: TypeAlias = Rows[Any] | RowStream[Any]
# The key of a data set -> what becomes of its samples.
RowKind: TypeAlias = Callable[[str], type[Tokenization[Any]]]
# What becomes of them as the data set asks for it -> with what the job adds to that.
Adapted: TypeAlias = Callable[[Tokenization[Any]], Tokenization[Any]]

# Of a stream, whose other rows are not looked at.
_ROWS_WITH_ALL_COLUMNS = 100
_LOOKED_AT = 100


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


@dataclass(frozen=True, kw_only=True)
class Look:
    """One data set of a job before it runs: what was recognised, counts, lengths, the first rows.

    Attributes:
        key: Where the configuration names it.
        tokenizer: Of the model that is trained.
        limit: The most tokens of a sequence.
        report: What became of the rows.
        lengths: Tokens of each row's longest sequence.
        rows: The first records.
        is_streamed: Whether these are the beginning of a stream alone.
    """

    key: str
    tokenizer: Any
    limit: LengthLimit
    report: RowReport
    lengths: Numbers
    rows: Sequence[Any]
    is_streamed: bool


class JobRows:
    """The data sets of a job, by their keys.

    Attributes:
        named: Those that the configuration names: to train on, held out, and for references.
    """

    def __init__(
        self,
        config: AnyJob,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: RowKind,
        most_tokens: Callable[[], int],
        reward: RewardConfig | None = None,
        adapted: Adapted = lambda job: job,
    ) -> None:
        """Read nothing so far; `most_tokens` is of a prompt, or of a sequence that is trained.

        Raises:
            ConfigError: A reward function cannot be loaded.
        """
        self.config, self.tokenizer, self.named = config, tokenizer, config.data_sets
        self._kind, self._most_tokens, self._reward = kind, most_tokens, reward
        self._adapted = adapted
        self._functions: list[RewardFunction] = checking_functions(reward) if reward else []

    def tokenization(self, key: str) -> Tokenization[Any]:
        """What becomes of the samples of a data set.

        Raises:
            ConfigError: Responses leave no room for a prompt.
        """
        kind = self._kind(key)
        of_data = kind.of(self.named[key], self.tokenizer, max_length=self._most_tokens())
        return self._adapted(of_data)

    def load(self, key: str) -> Loaded[Any]:
        """All examples that the job can use.

        Raises:
            ConfigError: Unreadable, malformed, empty, too long, not what a reward function can
                score, or of one label alone.
        """
        data, job = self.named[key], self.tokenization(key)
        loaded: Loaded[Any] = load(data, job, seed=self.config.seed)
        rows, report = loaded.rows, loaded.report
        if isinstance(job, LabelledAnswers) and key == "data":
            check_labels(rows)
        self.check_columns(key, rows)
        usable = usable_prompts(rows, self._functions, key=key, skip=data.on_bad_row == "skip")
        if num_refused := len(rows) - len(usable):
            report.num_kept -= num_refused
            report.left_out["rewards cannot score it"] = LeftOut(count=num_refused)
        return Loaded(rows=usable, report=report)

    def trained(self) -> AnyRows:
        """What the job trains on, or a stream of it where the data set is one.

        Raises:
            ConfigError: See `load`.
        """
        data = self.named["data"]
        if not data.streaming:
            return self.load("data").rows
        job, seed = self.tokenization("data"), self.config.seed
        stream = open_stream(data, job, seed=seed, check=self._check)
        if self._reward:
            self.check_columns("data", stream.first(_ROWS_WITH_ALL_COLUMNS))
        return stream

    def held_out(self) -> Rows[Any] | None:
        """What evaluations read; None where the configuration names nothing.

        Raises:
            ConfigError: See `load`.
        """
        return self.load("eval.data").rows if "eval.data" in self.named else None

    def passes(self, key: str) -> list[Passes[Any]]:
        """The passes over a data set that is a stream.

        Raises:
            ConfigError: See `open_passes`.
        """
        return open_passes(self.named[key], self.tokenization(key), check=self._check)

    def look(self, key: str, *, num_rows: int) -> Look:
        """A look at a data set before the job runs; everything is read as the job reads it.

        Raises:
            ConfigError: See `load`.
        """
        if self.named[key].streaming:
            return self._look_at_stream(key, num_rows)
        loaded = self.load(key)
        return Look(
            key=key,
            tokenizer=self.tokenizer,
            limit=self.tokenization(key).limit,
            report=loaded.report,
            lengths=loaded.rows.numbers("length"),
            rows=list(loaded.rows[:num_rows]),
            is_streamed=False,
        )

    def _look_at_stream(self, key: str, num_rows: int) -> Look:
        passes = self.passes(key)
        looks = [first_examples(each, max(num_rows, _LOOKED_AT)) for each in passes]
        kind = passes[0].job.kind
        by_source = [kind.records(table) for table, _ in looks]
        # One of each source in turn.
        turns = itertools.chain.from_iterable(itertools.zip_longest(*by_source))
        records = [record for record in turns if record is not None]
        self.check_columns(key, records)
        paths = " + ".join(each.source.path for each in passes)
        return Look(
            key=key,
            tokenizer=self.tokenizer,
            limit=passes[0].job.limit,
            report=merged([report for _, report in looks], paths),
            lengths=np.concatenate([table.column("length").to_numpy() for table, _ in looks]),
            rows=records[:num_rows],
            is_streamed=True,
        )

    @property
    def _check(self) -> Check[Any] | None:
        return partial(prompt_faults, functions=self._functions) if self._functions else None

    def check_columns(self, key: str, rows: Any) -> None:
        """Whether rows have what reward functions ask for by name.

        Raises:
            ConfigError: They lack it.
        """
        if self._reward:
            check_columns(self._reward, rows, key=key)


def tokenizer_of(model: ModelConfig) -> PreTrainedTokenizerBase:
    """A trained model's tokenizer.

    Raises:
        ConfigError: See `load_tokenizer`.
    """
    from rlhf_ray.data.chat.tokenizer import load_tokenizer

    return load_tokenizer(
        model.tokenizer or model.path,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
        revision=model.revision,
    )


def context_of(model: ModelConfig) -> int:
    """Tokens that a model reads together.

    Raises:
        ConfigError: The model cannot be read.
    """
    from rlhf_ray.models.limits import context_length

    return context_length(model)


def end_token_ids(
    model: ModelConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """What ends a response; the log says so."""
    from rlhf_ray.data.chat.turn_end import end_tokens
    from rlhf_ray.models.identity import generation_end_ids

    ends = end_tokens(tokenizer, generation_end_ids(model), stop_token_ids)
    logger.info("responses end at %s", ends.words)
    return ends.ids
