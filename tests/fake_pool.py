"""A pool in one process, which says what a recipe asked of it and of its roles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlhf_ray.jobs.job import Loop
from rlhf_ray.jobs.pool import Pool, RowReference, SupervisedRole, WeightedReward
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.loops.stopping import Stop
from rlhf_ray.metrics import Sink
from rlhf_ray.metrics.usage import Used
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays
from rlhf_ray.roles.protocols import RolloutStore, SleepLevel
from rlhf_ray.roles.reports import Evaluated, Hardware, Metrics
from rlhf_ray.specs import ReferenceSpec, RewardSpec, Spec, SupervisedSpec
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking, Rollout, Score

T = TypeVar("T")


class LoopOnly(Exception):
    """A loop asks this of a role, and no recipe."""


class FakeRole:
    """Says what recipes themselves ask of it; what loops ask is none of theirs."""

    def __init__(self, role: str, pool: FakePool) -> None:
        self.role, self.pool = role, pool

    def asked(self, what: str) -> None:
        self.pool.asked(f"{self.role} {what}")

    async def offload(self) -> None:
        raise LoopOnly

    async def sleep(self, level: SleepLevel) -> None:
        self.asked(f"sleep {level}")


class FakeReward(FakeRole):
    weights = {"score": 1.0}

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        raise LoopOnly


class FakeStore:
    """Nobody but a loop fetches rollouts."""

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        raise LoopOnly

    def put(self, rollouts: Sequence[Rollout]) -> Ref:
        raise LoopOnly


class FakeRowReference(FakeRole):
    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        raise LoopOnly

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        self.asked(f"answer_logps {len(rows)}")
        return [(-1.0,) * len(row.answer_ids_K) for row in rows]


class FakeSupervisedRole(FakeRole):
    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        raise LoopOnly

    async def hardware(self) -> Hardware:
        raise LoopOnly

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        raise LoopOnly

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        raise LoopOnly

    async def save(self, folder: str) -> None:
        raise LoopOnly

    async def restore(self, folder: str) -> None:
        raise LoopOnly

    async def score_answers(self, rows: Sequence[Ranking]) -> list[tuple[float, ...]]:
        self.asked(f"score_answers {len(rows)}")
        return [(float(number),) for number, _ in enumerate(rows)]

    async def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Sequence[int]
    ) -> Sequence[Sequence[int]]:
        raise LoopOnly


def role_of(spec: Spec) -> type[FakeRole]:
    match spec:
        case RewardSpec():
            return FakeReward
        case ReferenceSpec():
            return FakeRowReference
        case SupervisedSpec():
            return FakeSupervisedRole
    return FakeRole


class FakePool:
    """A `Pool`; what it is asked fails where `fails_at` says so.

    Attributes:
        calls: What was asked, in order.
        specs: What each role was made from.
        probed: The prompts that came with `connect`.
    """

    def __init__(
        self, run_dir: Path, *, fails_at: str = "", error: Exception | None = None
    ) -> None:
        self.run_dir, self.fails_at, self.error = run_dir, fails_at, error
        self.calls: list[str] = []
        self.specs: dict[str, Spec] = {}
        self.probed: list[Prompt] = []

    def asked(self, what: str) -> None:
        self.calls.append(what)
        if self.error is not None and what == self.fails_at:
            raise self.error

    async def start(self) -> None:
        self.asked("start")

    async def load(self, role: str, spec: Spec) -> Any:
        self.asked(f"load {role}")
        self.specs[role] = spec
        return role_of(spec)(role, self)

    async def unload(self, role: str) -> None:
        self.asked(f"unload {role}")

    async def connect(self, prompts: Iterable[Prompt]) -> None:
        self.asked("connect")
        self.probed = list(prompts)

    async def finish(self) -> None:
        self.asked("finish")
        (self.run_dir / "export").mkdir(exist_ok=True)

    async def usage(self) -> Used:
        return Used()

    def store(self) -> RolloutStore:
        return FakeStore()

    def sinks(self) -> Sequence[Sink]:
        return []


class FakeLoop:
    """In the place of a job's loop: says that it ran, and from where."""

    def __init__(self, asked: Callable[[str], object]) -> None:
        self.asked = asked

    async def run(self, checkpoint: Checkpoint | None, stop: Stop | None = None) -> None:
        self.asked("loop" if checkpoint is None else f"loop from {checkpoint.step}")

    async def with_result(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call()


class FakeTokenizer:
    """Leaves a trace of itself."""

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


def _(fake: FakePool) -> Pool:
    return fake


def _(fake: FakeReward) -> WeightedReward:
    return fake


def _(fake: FakeRowReference) -> RowReference:
    return fake


def _(fake: FakeSupervisedRole) -> SupervisedRole:
    return fake


def _(fake: FakeLoop) -> Loop:
    return fake
