"""What can be known to fail before Ray starts: files, functions and limits of the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from rlhf_ray.config.base import CHAT_TEMPLATE_NAMES, STATUS_FILE, ModelConfig
from rlhf_ray.config.checks import model_kind, references
from rlhf_ray.config.checks.model_kind import Kind
from rlhf_ray.config.checks.model_limits import (
    CPU_HEAD_DIMS,
    ModelLimits,
    read_json,
    read_limits,
)
from rlhf_ray.config.checks.wandb_login import login_fault
from rlhf_ray.config.checks.weight_files import untied_head_fault
from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.config.tools.problems import Problem, raise_for


def preflight(config: RunConfig) -> None:
    """Check what a configuration points at.

    Hub names are taken at their word: asking the hub is the job's first step.

    Raises:
        ConfigError: With every problem found.
    """
    raise_for(find_problems(config), source="before the start")


def find_problems(config: RunConfig) -> list[Problem]:
    """Everything that is wrong with what a configuration points at."""
    problems = [*_run_dir(config), *_wandb(config)]
    match config:
        case OnlineConfig():
            problems += _online(config)
        case SupervisedConfig():
            problems += _supervised(config)
    return problems


def _run_dir(config: RunConfig) -> Iterator[Problem]:
    folder = Path(config.run_dir)
    if not config.run_dir or not folder.exists():
        return
    if not folder.is_dir():
        yield _problem("run_dir", f"must be a folder, got the file {config.run_dir!r}")
    elif config.resume == "never" and _holds_a_run(folder):
        yield _problem(
            "run_dir",
            f"{config.run_dir!r} is not empty: take another, or go on with it by --resume auto",
        )


def _wandb(config: RunConfig) -> Iterator[Problem]:
    if config.wandb.mode == "online":
        yield from _fault("wandb.mode", login_fault())


def _holds_a_run(folder: Path) -> bool:
    """Whether there is more than what a job leaves that failed before its first step."""
    there = {path.name for path in folder.iterdir()}
    return bool(there - {"config.yaml", STATUS_FILE, "tokenizer"})


def _supervised(config: SupervisedConfig) -> Iterator[Problem]:
    role = config.trained_role
    yield from _trained(f"{role}.model", config.learner.model, config.model_kind)
    yield from _data_sets(config)
    if config.uses_reference_role:
        yield from _reference(config.models["reference"])
    limits = read_limits(Path(config.learner.model.path))
    context = limits.context_tokens if limits else None
    if context and config.max_length > context:
        yield _problem(
            "max_length", f"must be at most the model's {context}, got {config.max_length}"
        )


def _online(config: OnlineConfig) -> Iterator[Problem]:
    policy = config.policy.model
    yield from _trained("policy.model", policy, "causal")
    if config.uses_value:
        yield from _scorer("value", config.value.model)
        if config.value.model.path:
            yield from _trainable("value.model", config.value.model, "critic")
    if config.uses_reference_role:
        yield from _reference(config.reference.model)
    yield from _data_sets(config)
    for index, function in enumerate(config.reward.functions):
        yield from _fault(
            f"reward.functions.{index}.path", references.function_fault(function.path)
        )
    remote = config.reward.remote
    is_here = not (config.ray.address or config.ray.pool)  # elsewhere a node may have it
    if remote.url and remote.token_env and is_here and not os.environ.get(remote.token_env):
        yield _problem(
            "reward.remote.token_env",
            f"names {remote.token_env!r}, which is not set in the environment",
        )
    reward_model = config.reward.model
    if reward_model.path:
        yield from _fault("reward.model.path", references.model_fault(reward_model.path))
        yield from _kind("reward.model", reward_model.path, "classifier")
        scorer = read_limits(Path(reward_model.path))
        positions = scorer.context_tokens if scorer else None
        if positions and reward_model.max_length > positions:
            yield _problem(
                "reward.model.max_length",
                f"must be at most the model's {positions}, got {reward_model.max_length}",
            )
    if reward_model.tokenizer:
        yield from _fault(
            "reward.model.tokenizer", references.tokenizer_fault(reward_model.tokenizer)
        )
    limits = read_limits(Path(policy.path))
    if limits is not None:
        yield from _engine(config, limits)
        yield from _context(config, limits)


def _engine(config: OnlineConfig, limits: ModelLimits) -> Iterator[Problem]:
    gpus = config.placement.rollout.gpus_per_rank
    if gpus == 0 and limits.head_dim and limits.head_dim not in CPU_HEAD_DIMS:
        yield _problem(
            "policy.model.path",
            f"vLLM on CPU takes attention heads of dimension {', '.join(map(str, CPU_HEAD_DIMS))}; "
            f"the model's have {limits.head_dim}",
        )
    if gpus > 1:
        yield from _parallelism(gpus, limits)


def _parallelism(gpus: int, limits: ModelLimits) -> Iterator[Problem]:
    """As vLLM divides heads: fewer key and value heads than GPUs are copied."""
    key, kv_heads = "placement.rollout.gpus_per_rank", limits.num_kv_heads
    if limits.num_heads and limits.num_heads % gpus:
        yield _problem(
            key, f"tensor parallelism must divide the model's {limits.num_heads} heads, got {gpus}"
        )
    elif kv_heads and (kv_heads % gpus if kv_heads > gpus else gpus % kv_heads):
        yield _problem(
            key,
            f"tensor parallelism must divide the model's {kv_heads} key and value heads or be a "
            f"multiple of them, got {gpus}",
        )


def _context(config: OnlineConfig, limits: ModelLimits) -> Iterator[Problem]:
    context = limits.context_tokens
    max_model_len, new = config.rollout.max_model_len, config.rollout.max_new_tokens
    if context and max_model_len > context:
        yield _problem(
            "rollout.max_model_len", f"must be at most the model's {context}, got {max_model_len}"
        )
    room = max_model_len or context
    if not room:
        return
    for section, data in config.data_sets.items():
        prompt = data.prompt_tokens or data.max_prompt_tokens or 1
        if prompt + new > room:
            yield _problem(
                "rollout.max_new_tokens",
                f"prompts of {section} ({prompt} tokens) and {new} new tokens do not fit "
                f"into {room} tokens of context",
            )


def _scorer(role: str, model: ModelConfig) -> Iterator[Problem]:
    """A role that takes the policy's start where it names no model."""
    if model.path:
        yield from _model(f"{role}.model", model)


def _reference(model: ModelConfig) -> Iterator[Problem]:
    yield from _scorer("reference", model)
    yield from _kind("reference.model", model.path, "causal")


def _data_sets(config: AnyJob) -> Iterator[Problem]:
    yield from _data("data", config.data)
    yield from _eval_data(config.eval.data, config.eval.every)
    for key, data in config.data_sets.items():
        if key not in ("data", "eval.data"):
            yield from _data(key, data)


def _trained(key: str, model: ModelConfig, kind: Kind) -> Iterator[Problem]:
    yield from _model(key, model)
    yield from _trainable(key, model, kind)


def _trainable(key: str, model: ModelConfig, kind: Kind) -> Iterator[Problem]:
    """Whether weights can be trained, and by a role that takes models of a kind."""
    config = read_json(Path(model.path) / "config.json") or {}
    yield from _of_model(key, model.path, model_kind.quantization_fault(config, model))
    yield from _kind(key, model.path, kind)


def _kind(key: str, path: str, kind: Kind) -> Iterator[Problem]:
    """What a model's own files say against it; nothing of a hub's name."""
    folder = Path(path)
    config = read_json(folder / "config.json") if path else None
    if config is None:
        return
    generation = read_json(folder / "generation_config.json") or {}
    yield from _of_model(key, path, model_kind.kind_fault(config, kind))
    for fault in model_kind.token_id_faults(config, generation):
        yield from _of_model(key, path, fault)
    yield from _fault(f"{key}.path", untied_head_fault(folder, config))


def _of_model(key: str, path: str, fault: str | None) -> Iterator[Problem]:
    yield from _fault(f"{key}.path", fault and f"{path!r} {fault}")


def _model(key: str, model: ModelConfig) -> Iterator[Problem]:
    yield from _fault(f"{key}.path", references.model_fault(model.path))
    if model.quantization != "none" and find_spec("bitsandbytes") is None:
        yield _problem(
            f"{key}.quantization",
            f"{model.quantization!r} needs the package bitsandbytes; install it, or set 'none'",
        )
    if model.tokenizer:
        yield from _fault(f"{key}.tokenizer", references.tokenizer_fault(model.tokenizer))
    template = model.chat_template
    known = not template or "{" in template or template in CHAT_TEMPLATE_NAMES
    if not known and not Path(template).is_file():
        yield _problem(
            f"{key}.chat_template",
            f"must be one of {', '.join(CHAT_TEMPLATE_NAMES)}, Jinja text or a file's path, "
            f"got {template!r}",
        )


def _eval_data(data: DataConfig, every: int) -> Iterator[Problem]:
    if data.is_named:
        yield from _data("eval.data", data)
    elif every:
        yield _problem("eval.data.path", f"must name held-out rows, as eval.every is {every}")


def _data(key: str, data: DataConfig) -> Iterator[Problem]:
    if data.path:
        yield from _fault(f"{key}.path", references.data_fault(data.path))
    for index, source in enumerate(data.sources):
        yield from _fault(f"{key}.sources.{index}.path", references.data_fault(source.path))


def _fault(key: str, fault: str | None) -> Iterator[Problem]:
    if fault is not None:
        yield _problem(key, fault)


def _problem(key: str, message: str) -> Problem:
    return Problem(path=tuple(key.split(".")), message=message)
