"""Where rows come from: one data set or a mixture of several, and what becomes of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal, TypeAlias

from pydantic import PositiveFloat, PositiveInt, StrictBool, StrictFloat, StrictInt, StrictStr

from rlhf_ray.config.base import Config, LocalPath, NonNegativeInt

DataFormat = Literal[
    "auto", "prompt", "prompt_text", "text", "messages", "prompt_messages", "prompt_completion",
    "input_target", "alpaca", "self_instruct", "sharegpt", "lima", "ultrachat", "capybara",
    "preference", "implicit_prompt", "common_beginning", "hh", "sharegpt_pairs", "message_pairs",
    "alpaca_pairs", "alpaca_outputs", "openai_preference", "choice", "scored_choice",
    "pku_saferlhf", "shp", "helpsteer3", "helpsteer2_preference", "webgpt", "summarize_feedback",
    "arena", "arena_texts", "alpaca_farm", "llmbar", "pandalm", "ranking", "ultrafeedback",
    "helpsteer", "oasst_tree", "oasst_flat", "unpaired", "labelled_messages", "labelled_sharegpt",
    "stepwise", "instruction", "conversation", "dolly", "instruction_response", "query_response",
    "xlam", "flan", "stack_exchange", "oasst_message",
]  # fmt: skip
Label: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr


class BetterConfig(Config):
    """Which of the answers `a` and `b` is better, as a label says.

    Attributes:
        column: It holds the label; of several, what most of them say counts.
        a: The label, or labels, that call `a` the better one.
        b: Those that call `b` the better one.
        tie: Those that call neither; such pairs are counted and left out.
    """

    column: str | list[str]
    a: Label | list[Label]
    b: Label | list[Label]
    tie: Label | list[Label] = []

    @property
    def columns(self) -> list[str]:
        """The names, of one column or several."""
        return [self.column] if isinstance(self.column, str) else self.column

    @cached_property
    def sides(self) -> dict[str, str]:
        """`a`, `b` or `tie` by the label in plain form."""
        return {
            plain_label(label): side for side in ("a", "b", "tie") for label in self.labels(side)
        }

    def labels(self, side: str) -> list[Label]:
        """All labels of `a`, `b` or `tie`."""
        labels: Label | list[Label] = getattr(self, side)
        return labels if isinstance(labels, list) else [labels]

    def _faults(self) -> Iterator[str]:
        labels = [plain_label(label) for side in ("a", "b", "tie") for label in self.labels(side)]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            yield f"a, b and tie must have labels of their own, got {twice!r} twice"
        if not (self.columns and self.labels("a") and self.labels("b")):
            yield "column, a and b must each name something"


def plain_label(label: object) -> str:
    """A label as it is compared: `1`, `1.0` and `"1"` are one, and case does not count."""
    text = str(label).strip().lower()
    try:
        return str(float(text))
    except ValueError:
        return text


class SourceConfig(Config):
    """One data set: where its rows are and which of them count.

    Attributes:
        path: A file (json, jsonl, csv, tsv, txt, compressed or not; parquet, arrow), a folder or a
            pattern (`data/*.jsonl`) of them, what `save_to_disk` wrote, a hub name, or a task of
            reasoning-gym (`reasoning_gym:countdown,size=2000,seed=1`).
        split: Slices as in `datasets` (`train[:500]`, `test`); of a file, and of a folder in which
            nothing names a split, `train` is all of it.
        limit: Use only the first rows; 0 for all.
        skip: Leave out the first rows (held-out ones, say).
        format: `auto` recognises it from the columns of the first row.
        columns: What a column is called there, by the name it has here: `{prompt: question}`. What
            stands inside of a column is named by a path: `{answer: reward_model.ground_truth}`,
            `{prompt: turns.0.content}`. `better` may be a label, as `BetterConfig` says: `{a:
            reply_0, b: reply_1, better: {column: winner, a: 0, b: 1, tie: [both, neither]}}`.
    """

    path: LocalPath = ""
    split: str = "train"
    limit: NonNegativeInt = 0
    skip: NonNegativeInt = 0
    format: DataFormat = "auto"
    columns: dict[str, str | BetterConfig] = {}

    def _faults(self) -> Iterator[str]:
        for ours, theirs in self.columns.items():
            if isinstance(theirs, BetterConfig) and ours != "better":
                yield f"columns.{ours} must be a column's name: only better has labels"


class MixedSourceConfig(SourceConfig):
    """One of several data sets; `probability` is relative to the others'."""

    probability: PositiveFloat = 1.0


class DataConfig(SourceConfig):
    """Rows to train on, from one data set or a mixture of several.

    Attributes:
        sources: Several data sets in place of `path`, mixed by their probabilities.
        mixing: `until_all` goes on until every source was seen whole once, repeating the others;
            `until_first` ends with the first that runs out.
        chat: Put strings into the tokenizer's chat template: a prompt as the user's turn, an answer
            as the assistant's, a transcript as its turns.
        separator: Of a plain text file, between two texts.
        prompt_tokens: Cut every text to its first tokens to make a prompt of it; 0 for all.
        max_prompt_tokens: Longer prompts are treated as `over_length` says; 0 for the most that the
            context allows.
        over_length: What becomes of sequences that are too long: an `error`, `drop` or `truncate`,
            both counted. `sft` cuts plain texts into pieces under `auto`, which is an error
            otherwise, and under `split`, which truncates whatever else is too long.
        on_bad_row: A malformed row stops the job, or is counted by its reason and left out.
        workers: Processes that tokenize; 0 for one a core, but none for small data.
        cache: Keep tokenized rows on disk, by content, and map them from there the next time.
        streaming: Read and tokenize rows as they are needed, and keep none; for data that no disk
            holds. Nothing that needs all rows goes with it.
        shuffle: Train rows in an order of its own in each epoch.
        shuffle_buffer: Examples of a stream that are shuffled among themselves.
    """

    alternatives = (frozenset({"path", "sources"}),)

    sources: list[MixedSourceConfig] = []
    mixing: Literal["until_all", "until_first"] = "until_all"
    chat: bool = False
    separator: str = "<|endoftext|>"
    prompt_tokens: NonNegativeInt = 0
    max_prompt_tokens: NonNegativeInt = 0
    over_length: Literal["auto", "error", "drop", "truncate", "split"] = "auto"
    on_bad_row: Literal["error", "skip"] = "error"
    workers: NonNegativeInt = 0
    cache: bool = True
    streaming: bool = False
    shuffle: bool = True
    shuffle_buffer: PositiveInt = 10_000

    @property
    def is_named(self) -> bool:
        """Whether it says where rows are."""
        return bool(self.path or self.sources)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.path and self.sources:
            yield "data has either a path or sources, got both"
        if self.sources:
            for name in ("split", "limit", "skip", "format", "columns"):
                if getattr(self, name) != SourceConfig.model_fields[name].default:
                    yield f"{name} belongs to each of sources, not beside them"
        if 0 < self.max_prompt_tokens < self.prompt_tokens:
            yield (
                f"prompt_tokens must be at most max_prompt_tokens ({self.max_prompt_tokens}), got "
                f"{self.prompt_tokens}"
            )
        if self.streaming and self.mixing != "until_all":
            yield f"a stream has no end: leave mixing out, got {self.mixing!r}"
        for index, source in enumerate(self.sources):
            if not source.path:
                yield f"sources.{index}.path must name a data set"


def named(data_by_key: Mapping[str, DataConfig]) -> dict[str, DataConfig]:
    """Those of them that say where rows are."""
    return {key: data for key, data in data_by_key.items() if data.is_named}


def piece_faults(data_by_key: Mapping[str, DataConfig]) -> Iterator[str]:
    """Of jobs that train no plain texts: data that are to be cut into pieces."""
    for key, data in data_by_key.items():
        if data.over_length == "split":
            yield f"{key}.over_length split cuts the texts of sft: take truncate"


def stream_faults(data_by_key: Mapping[str, DataConfig]) -> Iterator[str]:
    """Of data that are read whole: streams."""
    for key, data in data_by_key.items():
        if data.streaming:
            yield f"{key}.streaming must be false: held-out rows are read whole"
