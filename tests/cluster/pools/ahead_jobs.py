"""Jobs that train beside sampling or not, for one standing pool, and the drivers that run them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import MEASURED, SCORERS, laid_over
from standing import Command, Standing

from rlhf_ray.config.tools.yaml_file import write_yaml

DRIVER = Path(__file__).with_name("killed_driver.py")
PROBE = 8
# Sampling beside training has seats of its own for the probe: so the engine is the same.
MODES: Mapping[str, dict[str, Any]] = {
    "synchronous": {"max_staleness": 0, "rollout": {"max_num_seqs": 64}},
    "ahead": {"max_staleness": 2, "rollout": {"max_num_seqs": 64 - PROBE}},
}
# What depends on which requests shared a batch with the probe, or on what was done meanwhile.
OF_TIMING = ("mismatch/probe_", "mismatch/logprob_abs_max", "async/groups_")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one driver told of a run."""

    lines: list[dict[str, Any]]

    @classmethod
    def by(cls, log: Path, run: str = "run") -> Told:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return cls(lines=[line for line in lines if line.get("run", run) == run])

    def of(self, key: str) -> dict[int, Any]:
        """By steps."""
        return {line["step"]: line[key] for line in self.lines if key in line}

    @property
    def asked(self) -> list[int]:
        """Draws that were sampled, or were to be."""
        return [line["asked"] for line in self.lines if "asked" in line]

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """By steps, what timing does not change."""
        return {
            step: {k: v for k, v in row.items() if not k.startswith((*MEASURED, *OF_TIMING))}
            for step, row in self.of("metrics").items()
        }


def drive(standing: Standing, log: Path, place: str, number: int, *arguments: str) -> Command:
    """A command on the pool, whose driver is killed when it is at a place for the n-th time."""
    driver = (str(DRIVER), str(log), place, str(number))
    return standing.script(*driver, *arguments, "--ray.pool", standing.name)


def write_jobs(folder: Path, model: Path, texts: list[str]) -> None:
    """A GRPO job for each mode, and `pipeline.yaml`."""
    rows = [{"prompt": text.strip()[: 12 + 17 * (n % 7)]} for n, text in enumerate(texts[:15])]
    stories = [{"prompt": text.strip()[:40], "completion": text[40:90]} for text in texts[:6]]
    for name, of in (("prompts", rows[:11]), ("held_out", rows[11:]), ("stories", stories)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    for mode in MODES:
        write_yaml({**_grpo(folder, model, mode), "total_steps": 6}, folder / f"{mode}.yaml")
    write_yaml(_pipeline(folder, model), folder / "pipeline.yaml")


def _grpo(folder: Path, model: str | Path, mode: str) -> dict[str, Any]:
    return laid_over(
        {
            "prompts_per_step": 3,
            "samples_per_prompt": 3,
            "data": {"path": str(folder / "prompts.jsonl")},
            "policy": {
                "model": {"path": str(model), "dtype": "float32"},
                "optim": {"lr": 1e-3, "schedule": "linear", "warmup_steps": 3},
                "max_tokens_per_micro_batch": 240,
            },
            "reference": {"model": {"dtype": "float32"}},
            "rollout": {"max_new_tokens": 24, "kv_cache_gb": 0.25, "stop": [" and"]},
            "reward": {"functions": [{"path": f"{SCORERS}:alike_at_times"}]},
            "publication": {"bucket_mb": 1, "probe_sequences": PROBE},
            "algorithm": {
                "minibatches": 2,
                "kl": {"coefficient": 0.05},
                "dynamic_sampling": {"enabled": True, "max_rounds": 2},
            },
            "checkpoint": {"every": 2, "keep": 2},
        },
        MODES[mode],
    )


def _pipeline(folder: Path, model: Path) -> dict[str, Any]:
    """As much as goes with sampling beside training at once, then a job without."""
    ahead, straight = (_grpo(folder, "stage:sft", mode) for mode in ("ahead", "synchronous"))
    each_step = {
        "total_steps": 4,
        "eval": {
            "every": 1,
            "num_prompts": 4,
            "data": {"path": str(folder / "held_out.jsonl")},
        },
    }
    lora = {"policy": {"model": {"lora": {"rank": 4}}}}
    ppo = {
        "value": {"model": {"dtype": "float32"}, "max_tokens_per_micro_batch": 240},
        "algorithm": {"dynamic_sampling": {"enabled": False}},
        "publication": {"running": "keep"},
    }
    sft = {
        "total_steps": 1,
        "batch_size": 2,
        "data": {"path": str(folder / "stories.jsonl")},
        "policy": {"model": {"path": str(model), "dtype": "float32"}},
    }
    stages = [
        ("sft", "sft", sft),
        ("ppo", "ppo", laid_over(laid_over(laid_over(ahead, each_step), lora), ppo)),
        ("grpo", "grpo", laid_over(laid_over(ahead, each_step), {"max_staleness": 1})),
        ("straight", "grpo", {**straight, "total_steps": 2}),
    ]
    return {
        "run_dir": str(folder / "pipeline"),
        "stages": [{"name": name, "job": job, "set": values} for name, job, values in stages],
    }
