"""Jobs that are killed amid their rows, and several at once: in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loads import load_sft

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.loading import cache

# Loads `rows.jsonl` as a job does; KILLED_AT and it has read so many rows, and is gone.
JOB = """
import multiprocessing, os, signal, sys
sys.path.insert(0, sys.argv[1])
from chat_families import byte_tokenizer
from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.loading import cache, passes
from loads import load_sft

cache._SMALL_BYTES = 0
killed_at = int(os.environ.get("KILLED_AT", "-1"))
read_rows = passes.read_rows

def killing(*arguments, **options):
    for number, row in enumerate(read_rows(*arguments, **options)):
        if number == killed_at:
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        yield row

if __name__ == "__main__":
    passes.read_rows = killing
    config = DataConfig(path="rows.jsonl", workers=int(sys.argv[2]))
    print(load_sft(config, byte_tokenizer(), max_length=99).rows.digest)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SMALL_BYTES", 0)
    lines = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(4_000))
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def start(workers: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "job.py", str(Path(__file__).parent), str(workers)]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def said_by(job: subprocess.Popen[str]) -> str:
    return job.communicate(timeout=200)[0].strip()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_that_tokenize_end_with_a_killed_job(folder: Path) -> None:
    job = start(2, KILLED_AT="3000")
    pids = [int(pid) for pid in said_by(job).split()]
    assert job.returncode == -9 and len(pids) == 2
    give_up_s = time.monotonic() + 30
    while any(map(is_alive, pids)) and time.monotonic() < give_up_s:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


def test_what_a_killed_job_wrote_is_replaced_and_jobs_at_once_keep_one(
    folder: Path, make_tokenizer: Any
) -> None:
    said_by(start(1, KILLED_AT="3000"))
    [left] = (folder / "cache/rows").iterdir()
    assert ".writing-" in left.name and (left / "rows.arrow").stat().st_size > 0
    digests = {said_by(job) for job in [start(1), start(1)]}
    [kept] = (folder / "cache/rows").iterdir()
    assert ".writing-" not in kept.name
    made_here = DataConfig(path="rows.jsonl", cache=False)
    assert digests == {load_sft(made_here, make_tokenizer(), max_length=99).rows.digest}
    assert load_sft(DataConfig(path="rows.jsonl"), make_tokenizer(), max_length=99).rows.digest in (
        digests
    )
