"""Through how many files a prompt of PPO passes, from its draw to the metrics, in one process."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch.distributed as dist
from fake_sink import FakeSink
from fakes import Company, make_config, make_prompts
from learning_company import LearningCompany, specs_of

from rlhf_ray.loops.evaluation import Evaluation
from rlhf_ray.loops.online import OnlineLoop
from rlhf_ray.metrics import MetricsLog
from rlhf_ray.metrics.log import Record

ROOT = Path(__file__).parents[3]
# As many as there are: whoever adds one says so here and in benchmarks/README.md.
MOST_OF_LOOP, MOST_IN_ALL = 29, 64


class CalledFiles:
    """Which of the project's files have a function that is called, in any thread."""

    def __init__(self) -> None:
        self.is_noting = False
        self.functions: dict[str, set[str]] = defaultdict(set)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Python's profiler calls it."""
        code = frame.f_code
        if self.is_noting and event == "call" and not code.co_name.startswith("<"):
            file = Path(code.co_filename)
            if file.is_relative_to(ROOT / "rlhf_ray"):
                self.functions[str(file.relative_to(ROOT))].add(code.co_name)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Of every call in the block, and in the threads that it starts."""
        before = sys.getprofile()
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(None)


class NotedSink(FakeSink):
    """Has calls noted from the metrics of one step to those of the next, these included."""

    def __init__(self, called: CalledFiles, *, after: int) -> None:
        super().__init__()
        self.called, self.after = called, after

    def log(self, record: Record) -> None:
        super().log(record)
        self.called.is_noting = record.step == self.after


@pytest.fixture
def group_of_one() -> Iterator[None]:
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


async def files_of_a_step(config: Any, company: Company) -> Mapping[str, set[str]]:
    """Of the second of three: start-up, evaluation and checkpoints lie outside."""
    called = CalledFiles()
    loop = OnlineLoop(
        config,
        company.roles(),
        make_prompts(16),
        Evaluation(config, []),
        MetricsLog([NotedSink(called, after=1)]),
    )
    with called.told():
        await loop.run(None)
    return called.functions


def listed(files: Mapping[str, set[str]]) -> str:
    return "\n".join(f"{file:40} {', '.join(sorted(files[file])[:5])}" for file in sorted(files))


async def test_the_loop_passes_a_prompt_through_few_files(tmp_path: Path) -> None:
    """From the draw to the metrics, with roles that are fakes."""
    config = make_config(tmp_path)
    files = await files_of_a_step(config, Company(config, lambda _, sample: float(sample)))
    assert {"rlhf_ray/data/order.py", "rlhf_ray/rollouts/feed.py", "rlhf_ray/metrics/log.py"} <= {
        *files
    }
    assert len(files) <= MOST_OF_LOOP, listed(files)


async def test_a_prompt_passes_through_few_files_in_all(
    tmp_path: Path, make_model: Callable[..., Path], group_of_one: None
) -> None:
    """All but Ray's actors and DeepSpeed: reward functions, experience, learners and models."""
    config, specs = specs_of(tmp_path, make_model("llama"))
    files = await files_of_a_step(config, LearningCompany(config, specs))
    assert {
        "rlhf_ray/rewards/contains.py", "rlhf_ray/experience/build.py",
        "rlhf_ray/algorithms/policy_losses.py", "rlhf_ray/learner/policy.py",
        "rlhf_ray/algorithms/value_losses.py", "rlhf_ray/learner/value.py",
    } <= {*files}  # fmt: skip
    assert len(files) <= MOST_IN_ALL, listed(files)
