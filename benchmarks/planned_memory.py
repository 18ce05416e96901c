r"""Peak memory of a CPU job's processes, measured, beside what `rlhf-ray plan` says of them.

    python benchmarks/planned_memory.py grpo configs/grpo/stories-cpu.yaml --total-steps 3
    python benchmarks/planned_memory.py sft configs/sft/stories-cpu.yaml --random gpt2 \
        --total-steps 2 --policy.max-tokens-per-micro-batch 2048

`--random` puts a random model of that family, of 60 to 130 million parameters, in the place of the
job's, with the tokenizer that the job's has. Measured is `VmHWM`, the most that was ever resident;
an engine is vLLM's worker process. Prints both, and their difference: of the whole, and of what is
above a process without a model. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rlhf_ray.config.jobs import JOBS
from rlhf_ray.config.load import load_config
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.memory import MIB
from rlhf_ray.planning.plan import plan_job
from rlhf_ray.planning.roles import model_paths
from rlhf_ray.planning.sources import read_shapes

MARK = "PLANNED_MEMORY"
PROCESSES = {
    "policy": "ray::PolicyRank",
    "value": "ray::ValueRank",
    "reference": "ray::ReferenceRank",
    "reward": "ray::RewardRank",
    "rollout": "VLLM::Worker",
}
SIZES = {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
RANDOM: dict[str, dict[str, Any]] = {
    "llama": {**WIDE, "intermediate_size": 2048, "max_position_embeddings": 1024},
    "qwen2": {
        "hidden_size": 640,
        "num_hidden_layers": 10,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "intermediate_size": 1728,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_embd": 768, "n_layer": 10, "n_head": 12, "n_positions": 1024},
}


def main() -> int:
    """Run the job and compare."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("config")
    parser.add_argument("--random", choices=RANDOM)
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides += ["--run-dir", f"{folder}/run"]
        config: Any = load_config(JOBS[options.job], options.config, overrides)
        if options.random:
            role = config.trained_role if isinstance(config, SupervisedConfig) else "policy"
            model = Path(folder, "model")
            _write_random(options.random, Path(getattr(config, role).model.path), model)
            overrides += [f"--{role}.model.path", str(model)]
            config = load_config(JOBS[options.job], options.config, overrides)
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


def _write_random(family: str, like: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **RANDOM[family], dtype="float32")
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
