"""Every benchmark of `make bench`, in the order in which they run and are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A command that prints a JSON object with `ratio`, `goal`, `holds` and `pairs`, and no other.

    Attributes:
        name: For `--only`, the table and the file of results.
        compares: What stands above the line of the ratio, and what below.
        bound: Whether the ratio shall be at least, or at most, the goal.
        command: Behind `python -m`.
        quick: What makes it a rehearsal.
        budget_s: Past this it counts as failed.
    """

    name: str
    compares: str
    bound: Literal["at least", "at most"]
    command: tuple[str, ...]
    quick: tuple[str, ...] = ("--quick",)
    budget_s: float


def _against_trl(case: str, compares: str, *, pairs: int = 3, budget_s: float = 420.0) -> Benchmark:
    return Benchmark(
        name=f"trl-{case}",
        compares=compares,
        bound="at least",
        command=("benchmarks.against_trl", case, "--pairs", f"{pairs}"),
        quick=("--pairs", "1", "--quick"),
        budget_s=budget_s,
    )


def _start_up(case: str, compares: str) -> Benchmark:
    return Benchmark(
        name=f"start-{case}",
        compares=compares,
        bound="at most",
        command=("benchmarks.start_up", case),
        budget_s=300.0,
    )


BENCHMARKS = (
    _against_trl(
        "grpo",
        "TRL 1.16's step of GRPO / ours: 64 prompts of 37 tokens, 8 answers of 64 to each",
    ),
    _against_trl("grpo-long-prompts", "the same with prompts of 256 tokens"),
    _against_trl(
        "grpo-long-tail",
        "the same as the first with a tail of long answers: 64 tokens on average, 512 at most",
        budget_s=600.0,
    ),
    _against_trl(
        "ppo",
        "TRL 1.12's step of PPO / ours, default placement: 64 answers of 64 tokens to prompts of "
        "37, 4 epochs, four models",
    ),
    _against_trl("ppo-long-prompts", "the same with 4 answers to each of 16 prompts of 256 tokens"),
    _against_trl("dpo", "TRL 1.16's steps of DPO / ours: HH-RLHF's prompts and lengths, 16 pairs"),
    _against_trl("rm", "TRL 1.16's steps of a reward model / ours, on the same", pairs=5),
    _against_trl(
        "sft",
        "TRL 1.16's seconds a token of SFT, packed / ours: rows of Alpaca's lengths",
        pairs=5,
    ),
    Benchmark(
        name="generation",
        compares="tokens/s of the rollout role / those of `vllm.LLM.generate`, same requests",
        bound="at least",
        command=("benchmarks.generation",),
        quick=("--pairs", "1"),
        budget_s=600.0,
    ),
    Benchmark(
        name="learner",
        compares="tokens/s of the learner / those of a bare PyTorch loop on the same packed tokens",
        bound="at least",
        command=("benchmarks.learner_speed",),
        budget_s=300.0,
    ),
    Benchmark(
        name="logprob-memory",
        compares="peak memory of log-probabilities, 4,096 tokens of 128k words / with full logits",
        bound="at most",
        command=("benchmarks.logprob_memory",),
        budget_s=300.0,
    ),
    Benchmark(
        name="publication",
        compares="seconds of publishing 100 M parameters to two engines / of copying them twice",
        bound="at most",
        command=("benchmarks.publication_speed",),
        quick=("--pairs", "1"),
        budget_s=300.0,
    ),
    Benchmark(
        name="driver",
        compares="the driver's CPU seconds a group of a run on 512 GPUs, simulated / on 4",
        bound="at most",
        command=("benchmarks.scale",),
        quick=(),
        budget_s=420.0,
    ),
    Benchmark(
        name="spans",
        compares="CPU seconds of a step's spans / seconds of the step",
        bound="at most",
        command=("benchmarks.spans",),
        quick=(),
        budget_s=300.0,
    ),
    _start_up("help", "seconds of `rlhf-ray --help` / 1"),
    _start_up("nothing", "seconds from `rlhf-ray grpo` to its first step, with nothing up / 45"),
    _start_up("pool", "the same on a standing pool / 5"),
)
