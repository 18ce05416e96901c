"""A job's data sets: what examples it makes of them, and what its rewards and losses ask."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig
from rlhf_ray.data.examples.preferences import (
    Answers,
    LabelledAnswers,
    Pairs,
    Rankings,
    check_labels,
)
from rlhf_ray.data.examples.prompts import Prompts
from rlhf_ray.data.examples.sft import Examples
from rlhf_ray.data.examples.tokenization import Tokenization
from rlhf_ray.data.job_limits import most_tokens, prompt_room
from rlhf_ray.data.loading.load import load
from rlhf_ray.data.loading.passes import Check, Passes
from rlhf_ray.data.loading.streams import open_passes, open_stream
from rlhf_ray.data.rows.report import LeftOut, Loaded
from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.data.rows.streaming import RowStream
from rlhf_ray.rewards.checks import checking_functions, prompt_faults, usable_prompts
from rlhf_ray.rewards.columns import check_columns
from rlhf_ray.rewards.functions import RewardFunction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_WITH_ALL_COLUMNS = 100  # of a stream, whose other rows are not looked at


class JobRows:
    """The data sets of a job, by their keys.

    Attributes:
        named: Those that the configuration names: to train on, held out, and for references.
    """

    def __init__(self, config: AnyJob, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read nothing so far.

        Args:
            config: Of the job.
            tokenizer: Of the model that is trained.

        Raises:
            ConfigError: A reward function cannot be loaded.
        """
        self.config, self.tokenizer = config, tokenizer
        sets: dict[str, DataConfig] = {"data": config.data, "eval.data": config.eval.data}
        if isinstance(config, RmConfig):
            sets["reference_data"] = config.reference_data
        self.named = {key: data for key, data in sets.items() if data.is_named}
        self._functions: list[RewardFunction] = []
        if isinstance(config, OnlineConfig):
            self._functions = checking_functions(config.reward)

    def tokenization(self, key: str) -> Tokenization[Any]:
        """What becomes of the samples of a data set.

        Raises:
            ConfigError: Responses leave no room for a prompt.
        """
        config, data = self.config, self.named[key]
        kind: type[Tokenization[Any]]
        match config:
            case OnlineConfig():
                return Prompts.of(data, self.tokenizer, max_length=prompt_room(config))
            case RmConfig():
                kind = Answers if key == "reference_data" else Rankings
            case DpoConfig():
                kind = LabelledAnswers if "kto" in config.loss_type else Pairs
            case _:
                kind = Examples
        return kind.of(data, self.tokenizer, max_length=most_tokens(config, self.tokenizer))

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

    def rows(self, key: str) -> Rows[Any] | RowStream[Any]:
        """All examples that the job can use, or a stream of them where the data set is one.

        Raises:
            ConfigError: See `load`.
        """
        data = self.named[key]
        if not data.streaming:
            return self.load(key).rows
        job, seed = self.tokenization(key), self.config.seed
        stream = open_stream(data, job, seed=seed, check=self._check)
        if isinstance(self.config, OnlineConfig):
            self.check_columns(key, stream.first(_ROWS_WITH_ALL_COLUMNS))
        return stream

    def passes(self, key: str) -> list[Passes[Any]]:
        """The passes over a data set that is a stream.

        Raises:
            ConfigError: See `open_passes`.
        """
        return open_passes(self.named[key], self.tokenization(key), check=self._check)

    @property
    def _check(self) -> Check[Any] | None:
        return partial(prompt_faults, functions=self._functions) if self._functions else None

    def check_columns(self, key: str, rows: Any) -> None:
        """Whether rows have what reward functions ask for by name.

        Raises:
            ConfigError: They lack it.
        """
        if isinstance(self.config, OnlineConfig):
            check_columns(self.config.reward, rows, key=key)
