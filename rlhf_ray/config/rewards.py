"""Where rewards come from, and how they are shaped."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, LocalPath, ModelSource, NonNegativeFloat, NonNegativeInt

# Names of what scores and is no function. An environment has given its rewards by then.
MODEL, REMOTE, ENVIRONMENT = "model", "remote", "environment"


class RewardFunctionConfig(Config):
    """A Python function by import path (`package.module:function` or `file.py:function`).

    Called for each prompt as `function(prompts, completions, **columns, **arguments) ->
    list[float | None]`; None is where it does not apply. A completion that no reward applies to is
    not trained.

    Attributes:
        name: Of its metric, `reward/<name>`; without one, the function's own name, with a number
            behind it where another scorer has that name.
    """

    path: LocalPath
    name: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_.-]*)?$")] = ""
    weight: float = 1.0
    arguments: dict[str, Any] = {}


def function_names(
    configs: Sequence[RewardFunctionConfig], taken: Collection[str] = ()
) -> list[str]:
    """The names of functions, all different and not `taken`; those that users gave stay."""
    used = {*taken, *(config.name for config in configs if config.name)}
    names = []
    for config in configs:
        name = config.name
        if not name:
            own = config.path.rpartition(":")[2]
            numbered = (f"{own}_{number}" for number in itertools.count(2))
            name = next(name for name in itertools.chain([own], numbered) if name not in used)
            used.add(name)
        names.append(name)
    return names


class RewardModelConfig(ModelSource):
    """Any `AutoModelForSequenceClassification`, with its own tokenizer; off without a `path`.

    Attributes:
        label: Which of the model's logits is the score.
        chat: Put a string prompt into the model's chat template as a user's turn, as training with
            `data.chat` does.
        normalize: `center` subtracts the mean of the scores of reference answers, which training
            stored with the model; `standardize` also divides by their spread.
        max_length: Longer texts are cut at their end; 0 for no limit.
        weight: Factor of the score in the sum with other rewards.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    label: NonNegativeInt = 0
    chat: bool = False
    max_tokens_per_micro_batch: PositiveInt = 8192
    max_length: NonNegativeInt = 0
    trust_remote_code: bool = False
    normalize: Literal["none", "center", "standardize"] = "none"
    weight: float = 1.0


class RemoteRewardConfig(Config):
    """An HTTP scorer; off while `url` is empty. The token is read from the variable `token_env`."""

    url: str = ""
    token_env: str = ""
    batch_size: PositiveInt = 64
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    backoff_s: PositiveFloat = 0.5
    weight: float = 1.0


class ShapingConfig(Config):
    """Changes of the score before it is trained on; 0 and False leave it alone.

    Attributes:
        clip: Scores are clamped to this distance from 0.
        missing_end_penalty: Subtracted where a response was cut off.
        overlong_buffer_tokens: DAPO's soft penalty over the last tokens before `max_new_tokens`
            (arXiv 2503.14476, eq. 13).
        repetition_penalty: Subtracted in full from a response that repeats one n-gram only.
    """

    clip: NonNegativeFloat = 0.0
    whiten: bool = False
    missing_end_penalty: NonNegativeFloat = 0.0
    overlong_buffer_tokens: NonNegativeInt = 0
    overlong_penalty: NonNegativeFloat = 1.0
    repetition_penalty: NonNegativeFloat = 0.0
    repetition_ngram: PositiveInt = 3


class RewardConfig(Config):
    """Where scores come from: functions, a model, a remote scorer; several are summed by weight."""

    functions: list[RewardFunctionConfig] = []
    model: RewardModelConfig = RewardModelConfig()
    remote: RemoteRewardConfig = RemoteRewardConfig()
    shaping: ShapingConfig = ShapingConfig()

    def _faults(self) -> Iterator[str]:
        names = [*self.other_names, *(each.name for each in self.functions if each.name)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            yield (
                f"functions must have names that differ from each other and from those of the "
                f"other scorers ({MODEL}, {REMOTE}), got {twice!r} twice"
            )

    @property
    def is_named(self) -> bool:
        """Whether there is any."""
        return bool(self.functions or self.model.path or self.remote.url)

    @property
    def other_names(self) -> tuple[str, ...]:
        """What the scorers are called that are no functions."""
        named = {MODEL: self.model.path, REMOTE: self.remote.url}
        return tuple(name for name, place in named.items() if place)
