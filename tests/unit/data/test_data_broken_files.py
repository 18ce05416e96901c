from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from broken_files import BROKEN, GOOD, Broken
from loads import load_prompts

from rlhf_ray.config.data import DataConfig, SourceConfig
from rlhf_ray.data.files import parsing, reading
from rlhf_ray.data.files.sources import read_rows
from rlhf_ray.data.row import Row
from rlhf_ray.errors import DataError, RowError

DEADLINE_S = 10.0
MAX_PEAK_GB = 2.0


@contextlib.contextmanager
def deadline() -> Iterator[None]:
    def over(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"not read in {DEADLINE_S:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_they_are_a_hundred() -> None:
    assert len(BROKEN) >= 100


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{i}-{b.name}" for i, b in enumerate(BROKEN)])
def test_a_broken_file_is_named_with_place_and_reason(tmp_path: Path, broken: Broken) -> None:
    path = tmp_path / broken.name
    path.write_bytes(broken.content)
    with deadline():
        try:
            rows = list(read_rows(SourceConfig(path=str(path))))
        except DataError as error:
            rows = [error]
    kept = [row for row in rows if isinstance(row, Row)]
    faults = [row for row in rows if not isinstance(row, Row)]
    assert broken.says in str(faults[0])
    assert str(path) in str(faults[0])
    assert len(str(faults[0])) < 600
    assert len(str(faults[0]).splitlines()) == 1
    if broken.line:
        assert isinstance(faults[0], RowError)
        assert faults[0].where == f"{path}:{broken.line}"
    if broken.kept >= 0:
        assert len(kept) == broken.kept
    else:  # how much of a cut file can be read is its library's to say
        assert faults[0].where == f"{path}:{len(kept) + 1}"


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{i}-{b.name}" for i, b in enumerate(BROKEN)])
def test_files_behind_a_broken_one_are_read(tmp_path: Path, broken: Broken) -> None:
    (tmp_path / broken.name).write_bytes(broken.content)
    (tmp_path / "z.jsonl").write_bytes(GOOD)
    with deadline():
        rows = list(read_rows(SourceConfig(path=str(tmp_path))))
    assert isinstance(rows[-1], Row)
    assert rows[-1].columns == {"text": "good"}


@pytest.mark.parametrize(("name", "wrap"), [("a.jsonl", b"%b"), ("a.json", b"[%b]")])
def test_rows_may_be_nested_as_deeply_as_whatever_keeps_them_bears(
    tmp_path: Path, chat_tokenizer: Any, name: str, wrap: bytes
) -> None:
    path = tmp_path / name
    for depth, says in ((199, ""), (200, "nested too deeply: more than 200"), (900, "nested too")):
        row = b'{"text": "t", "x": ' + b"[" * depth + b"]" * depth + b"}"
        path.write_bytes(wrap % row)
        config = DataConfig(path=str(path))
        if says:
            with pytest.raises(RowError, match=rf"{name}:1: {says}"):
                load_prompts(config, chat_tokenizer, context_tokens=99)
        else:
            loaded = load_prompts(config, chat_tokenizer, context_tokens=99)
            assert str(loaded.rows[0].columns["x"]) == "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("name", "content", "kept"),
    [
        ("a.jsonl", GOOD + b"9" * 200 + b"\n" + GOOD, 2),
        ("a.jsonl", GOOD + b"9" * 200, 1),
        ("a.json", b'[{"text": "good"},\n{"text": "' + b"x" * 200, 1),
        ("a.csv", b"text,n\ngood,1\n" + b"x" * 200 + b",2\n", 1),
        ("a.csv", b'text,n\ngood,1\n"' + b"x\n" * 100, 1),
        ("a.txt", b"good<|endoftext|>\n" + b"x" * 200, 1),
    ],
)
def test_a_row_without_end_is_not_read_to_its_end(
    tmp_path: Path, name: str, content: bytes, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (reading, parsing):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(reading, "_READ_BYTES", 20)
    path = tmp_path / name
    path.write_bytes(content)
    rows = list(read_rows(SourceConfig(path=str(path))))
    [fault] = [row for row in rows if isinstance(row, RowError)]
    line = 3 if name == "a.csv" else 2
    assert (fault.where, fault.reason) == (f"{path}:{line}", "row too long")
    assert len(rows) == kept + 1


HUGE = """
    import sys, time
    from rlhf_ray.config.data import SourceConfig
    from rlhf_ray.errors import RowError
    from rlhf_ray.data.files.sources import read_rows
    from rlhf_ray.metrics.usage import peak_memory_gb

    for path in sys.argv[1:]:
        start = time.process_time()  # other processes have a part of the clock's
        found = ["fault" if isinstance(row, RowError) else "row"
                 for row in read_rows(SourceConfig(path=path))]
        # Not `ru_maxrss`: a new process begins with that of the one that started it.
        print(path, *found, peak_memory_gb(), time.process_time() - start)
"""


def test_huge_rows_cost_bounded_memory_and_time(tmp_path: Path) -> None:
    """The sizes are the real ones; the file of a gigabyte is one hole on the disk."""
    emoji = "\U0001f600".encode()
    files = {
        "digits.jsonl": 1 << 30,
        "row.jsonl": b'{"text": "' + b"x" * (60 << 20) + emoji + b'"}\n',
        "row.json": b'[{"text": "' + b"x" * (60 << 20) + b'"}]',
        "quote.csv": b'text\n"' + b"x" * (150 << 20),
    }
    for name, content in files.items():
        with (tmp_path / name).open("wb") as file:
            if isinstance(content, int):
                file.truncate(content)
            else:
                file.write(content)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUGE), *(str(tmp_path / name) for name in files)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [line[1:-2] for line in lines] == [["fault"], ["row"], ["row"], ["fault"]]
    assert all(float(line[-2]) < MAX_PEAK_GB for line in lines), run.stdout
    assert all(float(line[-1]) < DEADLINE_S for line in lines), run.stdout
