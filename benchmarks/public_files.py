r"""What becomes of data that others have written: every file of a folder, in every job, as a table.

    python -m benchmarks.public_files FOLDER --template qwen2_5.jinja

Reads each file as `rlhf-ray data JOB CONFIG` would, with the tokenizer of `--model` and a chat
template of yours, whose marks become tokens. Where a job refuses a file and names the line to
write, the line is written and the file read again, so that every proposed line is tried; where a
row is malformed, the others are read with `on_bad_row: skip`. Jobs that see the same in a file
stand in one line; what they refuse for good comes in a second table. `--rows N` shows N rows of
each as well, as the job would see them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from launch.tables.rows import print_look
from rlhf_ray.config.jobs import JOB_CONFIGS, AnyJob
from rlhf_ray.data.chat.tokenizer import CHAT_TEMPLATES
from rlhf_ray.errors import ConfigError, RowError
from rlhf_ray.jobs.rows import Look, tokenizer_of
from rlhf_ray.jobs.table import JOBS

JOB_NAMES = ["sft", "rm", "dpo", "kto", "grpo"]
CONTEXT = 1 << 20  # tokens: nothing is too long
SCORE = {"path": "rlhf_ray.rewards.contains:contains_word", "arguments": {"word": "the"}}
# Tokens that templates write: <|im_start|>, <｜User｜>, <start_of_turn>, [INST], <think>
MARK = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|</?[a-z]+(?:_[a-z]+)*>|\[/?[A-Z_]{4,}\]")
COLUMNS = re.compile(r"data\.columns: (\{.*\})")
FORMAT = re.compile(r"data\.format: (\w+)")
UNKNOWN = "no known format has these columns"
MOST_TRIES = 4  # lines written one after the other
LONGEST = 300  # characters of an error


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job made of a file.

    Attributes:
        settings: What had to be written under `data`.
        seen: None where the job took nothing.
        words: Why rows were left out, or the job took none.
    """

    job: str
    settings: dict[str, Any]
    seen: Look | None
    words: str
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        """All that jobs may have in common."""
        wrote = ", ".join(f"{name}: {value}" for name, value in self.settings.items())
        if self.seen is None:
            return (shortened(self.words),)
        report = self.seen.report
        counts = f"{report.num_read:,}", f"{report.num_kept:,}"
        return report.format, *counts, self.words, wrote


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="+", choices=JOB_NAMES, default=JOB_NAMES)
    parser.add_argument("--template", default="chatml", help="a name or a file")
    parser.add_argument("--model", type=Path, default=None, help="its tokenizer is used")
    parser.add_argument("--data", type=json.loads, default={}, help='such as {"chat": true}')
    parser.add_argument("--rows", type=int, default=0, help="shown of each file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    model = arguments.model or Path(os.environ["RLHF_RAY_DATA"]) / "models/stories260K"
    files = sorted(file for file in arguments.folder.rglob("*") if file.is_file())
    refused: list[str] = []
    print("| file | jobs | recognised as | read | kept | left out | had to be written | seconds |")
    print("|---|---|---|--:|--:|---|---|--:|")
    with tempfile.TemporaryDirectory() as folder:
        write_model(model, arguments.template, Path(folder))
        for file in files:
            name = str(file.relative_to(arguments.folder))
            found = [
                outcome(job, file, folder, arguments.data, arguments.rows) for job in arguments.jobs
            ]
            for line in lines(name, (each for each in found if each.seen is not None)):
                print(line, flush=True)
            refused += lines(name, (each for each in found if each.seen is None))
            for each in found:
                if each.seen is not None and arguments.rows:
                    print_look(each.seen)
    print("\n| file | jobs | refused | seconds |\n|---|---|---|--:|")
    print("\n".join(refused))
    return 0


def write_model(source: Path, template: str, folder: Path) -> None:
    """A model folder without weights: a tokenizer with a chat template, and a long context."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source))
    text = CHAT_TEMPLATES.get(template) or Path(template).read_text(encoding="utf-8")
    marks = sorted({*MARK.findall(text)} - {*tokenizer.all_special_tokens})
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.chat_template, tokenizer.model_max_length = text, CONTEXT
    tokenizer.save_pretrained(folder)
    config = json.loads((source / "config.json").read_text())
    config |= {"max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(config))


def outcome(job: str, file: Path, model: str, data: dict[str, Any], num_rows: int) -> Outcome:
    """What a job makes of a file, once all that its errors say to write is written."""
    settings: dict[str, Any] = {}
    words = ""
    for _ in range(MOST_TRIES):
        begin = time.monotonic()
        config = job_config(job, model, {"path": str(file), **data, **settings})
        try:
            rows = JOBS[job].rows(config, tokenizer_of(config.learner.model))
            seen = rows.look("data", num_rows=num_rows)
        except ConfigError as error:
            words = " ".join(str(error).replace(str(file), file.name).split())
            more = proposed(error)
            if not more or more.items() <= settings.items():
                break
            settings = settings | more
            continue
        left_out = seen.report.left_out.items()
        return Outcome(
            job=job,
            settings=settings,
            seen=seen,
            words=", ".join(f"{rows.count} {reason}" for reason, rows in left_out),
            seconds=time.monotonic() - begin,
        )
    return Outcome(job=job, settings={}, seen=None, words=words, seconds=time.monotonic() - begin)


def proposed(error: ConfigError) -> dict[str, Any]:
    """What an error says to write under `data`; nothing where it leaves that open."""
    text = str(error)
    if (columns := COLUMNS.search(text)) and "..." not in columns[1]:
        return {"columns": yaml.safe_load(columns[1])}
    if "set data.format: " in text and (name := FORMAT.search(text)):
        return {"format": name[1]}
    is_row = isinstance(error, RowError) and error.reason != UNKNOWN
    return {"on_bad_row": "skip"} if is_row else {}


def job_config(job: str, model: str, data: dict[str, Any]) -> AnyJob:
    """The least that a job says, with all of its data."""
    trained = {"model": {"path": model}}
    settings: dict[str, Any] = {"data": {"cache": False, "workers": 1, **data}, "policy": trained}
    match job:
        case "rm":
            settings["reward"] = settings.pop("policy")
        case "kto":
            settings["loss_type"] = ["kto"]
        case "grpo":
            settings["reward"] = {"functions": [SCORE]}
    return cast(AnyJob, JOB_CONFIGS["dpo" if job == "kto" else job].model_validate(settings))


def lines(name: str, found: Iterable[Outcome]) -> Iterator[str]:
    """Lines of a table, one for jobs that have all but the time in common."""
    alike: dict[tuple[str, ...], list[Outcome]] = {}
    for each in found:
        alike.setdefault(each.cells, []).append(each)
    for cells, those in alike.items():
        jobs = ", ".join(each.job for each in those)
        seconds = f"{max(each.seconds for each in those):.1f}"
        row = (name, jobs, *cells, seconds)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def shortened(words: str) -> str:
    """An error, up to what a table bears."""
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}..."


if __name__ == "__main__":
    raise SystemExit(main())
