"""A pool in one process, which says what a recipe asked of it and of its roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.metrics import Sink
from rlhf_ray.roles import Metrics
from rlhf_ray.specs import Spec
from rlhf_ray.types import LabelledAnswer, Prompt, Ranking


class FakeRole:
    """Answers what recipes themselves ask of roles; loops are not run here."""

    def __init__(self, role: str, pool: FakePool) -> None:
        self.role, self.pool = role, pool
        self.weights = {"score": 1.0}

    async def sleep(self, level: int) -> None:
        self.pool.asked(f"{self.role} sleep {level}")

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        self.pool.asked(f"{self.role} answer_logps {len(rows)}")
        return [(-1.0,) * len(row.answer_ids_K) for row in rows]

    async def score_answers(self, rows: Sequence[Ranking]) -> list[tuple[float, ...]]:
        self.pool.asked(f"{self.role} score_answers {len(rows)}")
        return [(float(number),) for number, _ in enumerate(rows)]


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
        return FakeRole(role, self)

    async def unload(self, role: str) -> None:
        self.asked(f"unload {role}")

    async def connect(self, prompts: Iterable[Prompt]) -> None:
        self.asked("connect")
        self.probed = list(prompts)

    async def finish(self) -> None:
        self.asked("finish")
        (self.run_dir / "export").mkdir(exist_ok=True)

    async def usage(self) -> Metrics:
        return {}

    def sinks(self) -> Sequence[Sink]:
        return []
