"""Which stages of a pipeline are left to run, by what their folders hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config.tools.stages import Stage
from rlhf_ray.config.tools.yaml_file import read_yaml
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.status import state_of
from rlhf_ray.loops.setup import changes_since


def stages_left(stages: Sequence[Stage]) -> list[Stage]:
    """Those that did not finish, and those whose result is needed and gone.

    Raises:
        ConfigError: A finished stage was made from one that would be made anew.
    """
    anew = {stage.name for stage in stages if not _is_finished(stage) and not has_steps(stage)}
    stale = [stage for stage in stages if _is_finished(stage) and stage.sources & anew]
    if stale:
        folders = ", ".join(stage.config.run_dir for stage in stale)
        raise ConfigError(f"{folders}: made from a stage that is gone; delete these as well")
    left: list[Stage] = []
    for stage in reversed(stages):
        needed = any(stage.name in later.sources for later in left)
        if not _is_finished(stage) or (needed and not _has_weights(stage)):
            left.insert(0, stage)
    return left


def check_same(finished: Stage) -> None:
    """Whether what a stage finished is what is asked for.

    Raises:
        ConfigError: It finished with other settings.
    """
    before = read_yaml(Path(finished.config.run_dir) / "config.yaml").values
    if changed := changes_since(finished.config, before):
        raise ConfigError(
            f"stage {finished.name} is finished with other settings: {'; '.join(changed)}; set "
            f"them back, or delete {finished.config.run_dir}"
        )


def has_steps(stage: Stage) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any(Path(stage.config.run_dir, "checkpoints").glob("step_*"))


def results_needed(stages: Sequence[Stage], later: Sequence[Stage]) -> list[str]:
    """Where the results are from which any of `later` starts."""
    sources = {name for stage in later for name in stage.sources}
    return [stage.result for stage in stages if stage.name in sources]


def _is_finished(stage: Stage) -> bool:
    return stage.config.resume != "never" and state_of(stage.config.run_dir) == "finished"


def _has_weights(stage: Stage) -> bool:
    return any(Path(stage.result).glob("*.safetensors"))
