"""Where rewards come from, and how they are shaped."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from rlhf_ray.config.base import Config, LocalPath, NonNegativeFloat, NonNegativeInt
from rlhf_ray.config.models import ModelSource

# Names of what scores and is no function. An environment has given its rewards by then.
MODEL, REMOTE, JUDGE, ENVIRONMENT = "model", "remote", "judge", "environment"


# Rewards that are here, by the names that a configuration may have in place of their paths.
READY = {
    "code_tests": "rlhf_ray.rewards.code:passes_tests",
    "contains_word": "rlhf_ray.rewards.contains:contains_word",
    "gsm8k": "rlhf_ray.rewards.gsm8k:correct_answer",
    "math_verify": "rlhf_ray.rewards.math:equivalent",
    "near_length": "rlhf_ray.rewards.contains:near_length",
    "reasoning_gym": "rlhf_ray.rewards.reasoning_gym:verified",
}


def _path_of(path: str) -> str:
    if ":" not in path and path not in READY:
        raise ValueError(
            f"must be package.module:function, file.py:function or one of {', '.join(READY)}, "
            f"got {path!r}"
        )
    return READY.get(path, path)


class RewardFunctionConfig(Config):
    """A Python function by import path (`package.module:function` or `file.py:function`).

    Or one that is here, by its name: `math_verify`, `code_tests`, `gsm8k`, ...

    Called for each prompt as `function(prompts, completions, **columns, **arguments) ->
    list[float | None]`; None is where it does not apply. A completion that no reward applies to is
    not trained.

    Attributes:
        name: Of its metric, `reward/<name>`; without one, the function's own name, with a number
            behind it where another scorer has that name.
    """

    path: Annotated[LocalPath, AfterValidator(_path_of)]
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


class ServiceConfig(Config):
    """A scorer behind HTTP; off while `url` is empty.

    Attributes:
        token_env: Variable of the environment that holds the token.
        timeout_s: Of a request.
        retries: After no answer, or one that another may make good.
        weight: Factor of the score in the sum with other rewards.
    """

    url: str = ""
    token_env: str = ""
    timeout_s: PositiveFloat = 60.0
    retries: NonNegativeInt = 4
    backoff_s: PositiveFloat = 0.5
    weight: float = 1.0


class RemoteRewardConfig(ServiceConfig):
    """An HTTP scorer with a protocol of our own; `batch_size` rows a request."""

    batch_size: PositiveInt = 64


JUDGE_TEMPLATE = """Grade the answer to a request.

Request:
{prompt}

Answer:
{completion}

Say in a few sentences what is good and what is bad about it. Then end with a line of its own: \
Grade: N, with a number N from 0 (useless) to 10 (could not be better)."""


class JudgeConfig(ServiceConfig):
    """A language model that grades completions, behind OpenAI's protocol of chats.

    Attributes:
        url: Where the protocol begins, such as `http://host:8000/v1`.
        model: As the server names it.
        template: What it is asked, with `{prompt}`, `{completion}` and columns of the data in
            braces; other braces are doubled.
        pattern: A regular expression whose first group is the grade; the last match counts.
        grades: Score of each word that the group may be, in small letters; empty for numbers.
        worst: The grade that scores 0. One outside of `worst` to `best` is none.
        best: The grade that scores 1.
        votes: How often each completion is asked about, with other seeds; the score is the mean.
        max_tokens: Of an answer.
        requests: Most at a time, of one worker.
    """

    model: str = ""
    template: str = JUDGE_TEMPLATE
    pattern: str = r"Grade:\s*\**\s*(-?\d+(?:\.\d+)?)"
    grades: dict[str, float] = {}
    worst: float = 0.0
    best: float = 10.0
    votes: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 1024
    requests: PositiveInt = 16

    def _faults(self) -> Iterator[str]:
        if not self.url:
            return
        if not self.model:
            yield "model must name the judge, as its server does"
        yield from self._template_faults()
        yield from self._pattern_faults()
        if self.worst == self.best:
            yield f"best must differ from worst, got {self.best:g} for both"
        if any(word != word.lower().strip() for word in self.grades):
            yield f"grades must be words in small letters, got {[*self.grades]}"
        if self.votes > 1 and not self.temperature:
            yield (
                f"temperature must be above 0 for votes {self.votes}: greedy votes are all the same"
            )

    def _template_faults(self) -> Iterator[str]:
        try:
            names = self.named
        except ValueError as error:
            yield f"template must have its other braces doubled: {error}"
            return
        if bad := [name for name in names if not name.isidentifier()]:
            yield f"template must name columns between braces, got {{{bad[0]}}}"
        if "completion" not in names:
            yield "template must have {completion}"

    def _pattern_faults(self) -> Iterator[str]:
        try:
            has_group = re.compile(self.pattern).groups > 0
        except re.error as error:
            yield f"pattern is no regular expression: {error}"
            return
        if not has_group:
            yield f"pattern must have a group around the grade, got {self.pattern!r}"

    @property
    def named(self) -> tuple[str, ...]:
        """What stands in the template's braces.

        Raises:
            ValueError: A brace is open.
        """
        fields = (field for _, field, _, _ in Formatter().parse(self.template))
        return tuple(dict.fromkeys(field for field in fields if field is not None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that the template has."""
        own = ("prompt", "completion")
        return tuple(name for name in self.named if name not in own) if self.url else ()


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
    """Where scores come from: functions, a model, services; several are summed by weight."""

    functions: list[RewardFunctionConfig] = []
    model: RewardModelConfig = RewardModelConfig()
    remote: RemoteRewardConfig = RemoteRewardConfig()
    judge: JudgeConfig = JudgeConfig()
    shaping: ShapingConfig = ShapingConfig()

    def _faults(self) -> Iterator[str]:
        names = [*self.other_names, *(each.name for each in self.functions if each.name)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            yield (
                f"functions must have names that differ from each other and from those of the "
                f"other scorers ({MODEL}, {REMOTE}, {JUDGE}), got {twice!r} twice"
            )

    @property
    def services(self) -> dict[str, float]:
        """The scorers behind HTTP, each with its weight."""
        named: dict[str, ServiceConfig] = {REMOTE: self.remote, JUDGE: self.judge}
        return {name: service.weight for name, service in named.items() if service.url}

    @property
    def needs_workers(self) -> bool:
        """Whether anything scores but a model on ranks."""
        return self.num_scorers > bool(self.model.path)

    @property
    def num_scorers(self) -> int:
        """All of them, the model included; an environment's rewards are not among them."""
        return len(self.functions) + len(self.other_names)

    @property
    def other_names(self) -> tuple[str, ...]:
        """What the scorers are called that are no functions."""
        return (*([MODEL] if self.model.path else ()), *self.services)
