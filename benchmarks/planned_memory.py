r"""Peak memory of a CPU job's processes, measured, beside what `rlhf-ray plan` says of them.

    python benchmarks/planned_memory.py grpo configs/grpo/stories-cpu.yaml --total-steps 3
    python benchmarks/planned_memory.py grpo configs/grpo/stories-cpu.yaml --draw 22 --total-steps 2

`--draw SEED` puts a random model of 2 to 80 million parameters in the place of the job's, with the
tokenizer that the job's has, and draws micro-batches, ZeRO stage, ranks and the engine's sizes.
Measured is `VmHWM`, the most that was ever resident; an engine is vLLM's worker process. Prints
both, and their difference: of the whole, and of what is above a process without a model. Needs
Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.jobs import JOB_CONFIGS
from rlhf_ray.config.online import OnlineConfig, PpoConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.memory import MIB
from rlhf_ray.models.shape import read_shapes
from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.planning.roles import model_paths

MARK = "PLANNED_MEMORY"
PROCESSES = {
    "policy": "ray::PolicyRank",
    "value": "ray::ValueRank",
    "reference": "ray::ReferenceRank",
    "reward": "ray::RewardRank",
    "reward_worker": "ray::RewardWorker",
    "rollout": "VLLM::EngineCore",
}
FAMILIES = ("llama", "qwen2", "gpt2", "qwen3")
HEAD_DIM = 64
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A model and settings: sizes as its family's configuration names them, keys of the job."""

    family: str
    sizes: dict[str, Any]
    keys: dict[str, Any]


def main() -> int:
    """Run the job and compare."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("job", choices=JOB_CONFIGS)
    parser.add_argument("config")
    parser.add_argument("--draw", type=int, metavar="SEED")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides += ["--run-dir", f"{folder}/run"]
        config: Any = load_config(JOB_CONFIGS[options.job], options.config, overrides)
        if options.draw is not None:
            role = config.trained_role
            drawn = _draw(options.draw, config, role)
            model = Path(folder, "model")
            _write_model(drawn, Path(getattr(config, role).model.path), model)
            keys = drawn.keys | {f"{role}.model.path": str(model)}
            # Keys that are given win.
            overrides[:0] = [
                word for key, value in keys.items() for word in (f"--{key}", f"{value}")
            ]
            config = load_config(JOB_CONFIGS[options.job], options.config, overrides)
        assert isinstance(config, OnlineConfig | SupervisedConfig)
        cluster = Cluster(nodes=1, gpus_per_node=0, gpu_bytes=0)
        plan = plan_job(config, read_shapes(model_paths(config), []), cluster)
        status, measured = _measured([options.job, options.config, *overrides])
    print(f"{'role':<10} {'planned':>8} {'measured':>9} MiB {'whole':>9} {'above bare':>11}")
    for need in plan.roles:
        peak = max(mib for title, mib in measured.items() if PROCESSES[need.role] in title)
        planned, bare = need.memory.total / MIB, need.memory.process / MIB
        above = (planned - bare) / max(1.0, peak - bare) - 1
        print(
            f"{need.role:<10} {planned:8.0f} {peak:9.0f} {planned / peak - 1:+13.1%} "
            + (f"{above:+11.1%}" if planned > bare else "")
        )
    return status


def _draw(seed: int, config: OnlineConfig | SupervisedConfig, role: str) -> Draw:
    """The same for the same seed and kind of job."""
    draw = random.Random(seed)
    family = draw.choice(FAMILIES)
    heads, layers = draw.choice([4, 6, 8, 10]), draw.randint(3, 8)
    hidden = HEAD_DIM * heads
    vocabulary = draw.choice([2000, 8000, 16000, 32000, 50000])
    width = 64 * round(draw.uniform(2, 4.5) * hidden / 64)
    kv_heads = draw.choice([num for num in (heads, heads // 2, 2, 1) if heads % num == 0])
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": draw.random() < 0.5,
        "head_dim": HEAD_DIM,
    }
    if family == "gpt2":
        sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": width}
    ranks = draw.choice([1, 1, 1, 2])
    keys: dict[str, Any] = {
        f"{role}.max_tokens_per_micro_batch": draw.choice([512, 1024, 2048, 4096]),
        f"{role}.logits_chunk_tokens": draw.choice([256, 1024]),
        f"{role}.model.gradient_checkpointing": draw.choice([False, True]),
        f"{role}.zero.stage": draw.choice([0, 0, 1, 2, 3]),
        f"placement.{role}.ranks": ranks,
    }
    return Draw(
        family=family,
        sizes={**sizes, "vocab_size": vocabulary},
        keys=keys | _draw_batches(draw, config),
    )


def _draw_batches(draw: random.Random, config: OnlineConfig | SupervisedConfig) -> dict[str, Any]:
    if isinstance(config, SupervisedConfig):
        return {"batch_size": 8, "max_length": draw.choice([128, 256, 512])}
    keys: dict[str, Any] = {
        "prompts_per_step": 8,
        "samples_per_prompt": draw.choice([2, 4]),
        "rollout.max_new_tokens": draw.choice([32, 64]),
        "rollout.max_num_seqs": draw.choice([16, 64, 128]),
        "rollout.kv_cache_gb": draw.choice([0.125, 0.25, 0.5]),
        "reference.max_tokens_per_micro_batch": draw.choice([1024, 4096]),
        "eval.num_prompts": 2,
    }
    if isinstance(config, PpoConfig):
        keys["value.max_tokens_per_micro_batch"] = draw.choice([512, 2048])
        keys["algorithm.minibatches"] = draw.choice([1, 2])
    return keys


def _write_model(drawn: Draw, like: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(drawn.family, **TOKENS, **drawn.sizes, dtype="float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in like.glob("tokenizer*"):
        shutil.copy(file, folder)


def _measured(arguments: list[str]) -> tuple[int, dict[str, float]]:
    """Exit status, and the peak of every process of the job in MiB, by its title and number."""
    job = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *arguments],
        env={**os.environ, MARK: str(os.getpid())},
    )
    peaks: dict[str, float] = {}
    try:
        while job.poll() is None:
            _sample(peaks)
            time.sleep(0.5)
    finally:
        job.terminate()
    return job.returncode, peaks


def _sample(peaks: dict[str, float]) -> None:
    """Look at every process that inherited our mark."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={os.getpid()}" not in (process / "environ").read_text():
                continue
            title = (process / "cmdline").read_text().split("\0")[0]
            peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        except (OSError, UnicodeDecodeError):  # it ended, or is not ours
            continue
        if peak:
            peaks[f"{title} {process.name}"] = int(peak[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
