"""The command `rlhf-ray data JOB CONFIG`: a job's rows as it will see them; nothing starts.

For example `rlhf-ray data sft configs/sft/stories-cpu.yaml --rows 5`.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from launch import cli
from rlhf_ray.config.jobs import JOBS, PIPELINE, AnyJob
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.supervised import RmConfig, SupervisedConfig
from rlhf_ray.config.tools.load import load_config
from rlhf_ray.config.tools.ready import find_config
from rlhf_ray.config.tools.stages import Stage, resolve_stages, to_come

_DATA_KEYS = (("data",), ("eval", "data"), ("reference_data",))


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A job, or one stage of a pipeline.

    Attributes:
        stage: Its name; empty for a job of its own.
        to_come: Data sets that an earlier stage will write, by their keys: where they will be.
    """

    config: AnyJob
    stage: str = ""
    to_come: dict[str, str] = field(default_factory=dict)


def main(arguments: Sequence[str]) -> int:
    """Print what the job's data are; returns 0.

    Raises:
        ConfigError: What the job would say of its configuration or data.
    """
    options, overrides = parser().parse_known_args(arguments)
    jobs = list(_jobs(options, overrides))

    from launch.tables.rows import print_look, print_note
    from rlhf_ray.data.look import look

    told: set[str] = set()
    with _quiet_reports():
        for job in jobs:
            marked = _marked(job.config)
            prefix = f"{job.stage}: " if job.stage else ""
            for key, path in job.to_come.items():
                print_note(f"{prefix}{key}", f"an earlier stage will write it: {path}")
            for each in look(job.config, num_rows=options.rows, skip=[*job.to_come]):
                print_look(each, prefix, marked="" if marked in told else marked)
                told.add(marked)
    return 0


def _marked(config: AnyJob) -> str:
    """What is marked in a job's rows."""
    if isinstance(config, RmConfig):
        return "answers that are scored"
    return "trained tokens" if isinstance(config, SupervisedConfig) else ""


@contextmanager
def _quiet_reports() -> Iterator[None]:
    """Without the log's lines about rows: what they say is shown."""
    logger = logging.getLogger("rlhf_ray.data.rows.report")
    logger.disabled, before = True, logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


def parser() -> ArgumentParser:
    """What the command line takes, beside the configuration's own keys."""
    parser = ArgumentParser(
        prog="rlhf-ray data",
        description="How a job's rows are recognised, counted and tokenized. Nothing starts; of "
        "models the tokenizer and config.json alone are read.",
        epilog="Any key of the configuration can be given as well: --data.limit 1000",
        allow_abbrev=False,
    )
    parser.add_argument("job", choices=[*JOBS, PIPELINE])
    parser.add_argument("config", help="its configuration: a YAML file, or a ready one by its name")
    parser.add_argument(
        "--rows", type=_count, default=3, metavar="N", help="shown of each data set (default: 3)"
    )
    return parser


def _jobs(options: Namespace, overrides: Sequence[str]) -> Iterator[LookedAt]:
    """The job, or the stages of the pipeline."""
    file = find_config(options.job, options.config)
    if options.job != PIPELINE:
        config = load_config(JOBS[options.job], file, overrides)
        yield LookedAt(config=cast(AnyJob, config))
        return
    pipeline = load_config(PipelineConfig, file, overrides)
    # Absolute, as a run's: what lies in it is what a stage writes.
    run_dir = os.path.abspath(pipeline.run_dir or cli.default_run_dir(PIPELINE, file))
    stages = resolve_stages(pipeline.model_copy(update={"run_dir": run_dir}), check_files=False)
    for number, stage in enumerate(stages):
        unwritten = _unwritten(stage, stages[:number])
        yield LookedAt(config=stage.rooted, stage=stage.name, to_come=unwritten)


def _unwritten(stage: Stage, earlier: Sequence[Stage]) -> dict[str, str]:
    """Data sets in the folders of earlier stages that are not there."""
    values = stage.config.model_dump()
    found: dict[str, str] = {}
    for path in sorted(to_come(stage.config, earlier)):
        length = next((len(key) for key in _DATA_KEYS if path[: len(key)] == key), 0)
        file = _at(values, path)
        if length and not os.path.exists(file):
            found[".".join(path[:length])] = file
    return found


def _at(values: Any, path: Sequence[str]) -> str:
    """What stands at a key."""
    for part in path:
        values = values[int(part) if isinstance(values, list) else part]
    return str(values)


def _count(text: str) -> int:
    if not text.isdigit():
        raise ArgumentTypeError(f"must be a number of rows, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(cli.main(["data", *sys.argv[1:]]))
