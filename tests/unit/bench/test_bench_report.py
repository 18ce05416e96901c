"""`make bench`: what a benchmark prints is a result; a failure is told, and the others go on."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks.bench.__main__ import PAGE, measured, run
from benchmarks.bench.report import BEGIN, END, result_in, table_of, write_table
from benchmarks.bench.table import BENCHMARKS, Benchmark

GOOD = {"ratio": 1.5, "goal": 1.2, "holds": True, "pairs": [{"ratio": 1.5}]}


def benchmark(name, *, budget_s=60.0):
    return Benchmark(
        name=name, compares="a / b", bound="at least", command=(name,), quick=(), budget_s=budget_s
    )


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Benchmarks in the shape of modules: one that holds, one that misses, one that dies, one that
    hangs."""
    missed = GOOD | {"ratio": 1.0, "holds": False}
    for name, text in {
        "holds": f"print('loading'); print({json.dumps(json.dumps(GOOD, indent=1))})",
        "misses": f"print({json.dumps(json.dumps(missed))}); raise SystemExit(1)",
        "dies": "raise RuntimeError('no such engine')",
        "hangs": "import time; time.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("benchmarks.bench.__main__.BENCHMARKS", [*map(benchmark, NAMES)])
    return tmp_path


NAMES = ("dies", "misses", "holds")


def test_each_comes_to_its_turn_whatever_became_of_the_others(modules, capsys):
    file = modules / "latest.json"
    assert run([*map(benchmark, NAMES)], file=file, page=None, quick=False) == 1
    results = json.loads(file.read_text())
    assert [results[name]["holds"] for name in NAMES] == [False, False, True]
    assert results["holds"] == GOOD
    assert "no such engine" in results["dies"]["error"]
    assert "dies: failed" in capsys.readouterr().out


def test_the_status_is_that_of_what_was_run(modules):
    file = modules / "latest.json"
    run([benchmark("misses")], file=file, page=None, quick=False)
    assert run([benchmark("holds")], file=file, page=None, quick=False) == 0
    assert json.loads(file.read_text()).keys() == {"misses", "holds"}


def test_one_that_hangs_is_ended(modules):
    result = measured(benchmark("hangs", budget_s=1.0), quick=False)
    assert result["error"] == "not done after 1 s"


@pytest.mark.parametrize(
    "text",
    ["", "no object", json.dumps({"ratio": 1.0}), json.dumps(GOOD | {"ratio": float("nan")})],
)
def test_what_is_no_result_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|must"):
        result_in(text)


def test_the_table_stands_between_the_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nlast week's\n{END}\nbehind\n")
    failed = {"ratio": None, "goal": None, "holds": False, "pairs": [], "error": "died"}
    table = table_of({"holds": GOOD, "dies": failed}, [*map(benchmark, NAMES)])
    write_table(page, table)
    write_table(page, table)
    text = page.read_text()
    assert "last week's" not in text
    assert text.startswith("before\n") and text.endswith("behind\n")
    assert text.count("| `holds` | a / b | 1.5 | at least 1.2 | yes |") == 1
    assert "| `dies` | a / b | failed |" in text
    assert "| `misses` | a / b | not measured yet |" in text


def test_the_page_has_the_marks_and_every_command_is_there():
    text = PAGE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    for one in BENCHMARKS:
        assert importlib.util.find_spec(one.command[0]), one.name
    assert len({one.name for one in BENCHMARKS}) == len(BENCHMARKS)
