"""What a run shows: the project's own words; a file in its folder has those of libraries."""

import logging
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest

from actors.jobs.payload import Payload
from launch import cli, submit
from launch.run import cluster
from launch.run.messages import FILE, keep_in, libraries_to_file
from rlhf_ray.errors import ConfigError, RunError

NOISE = """
import logging, sys, warnings
import rich
from launch.run.messages import *

def speak(place):
    logging.getLogger("transformers.loading").warning("A log")
    logging.getLogger("transformers").error("An error")
    logging.getLogger("launch.own").info("own words")
    warnings.warn("a warning")
    print("a print")
    print("a bar", file=sys.stderr)
    own = logging.StreamHandler()  # as DeepSpeed has
    logger = logging.getLogger("DeepSpeed"); logger.propagate = False; logger.addHandler(own)
    logger.warning("its own handler")
    rich.print("a table")

show_own_logs()
if "--verbose" in sys.argv: show_everything()
with libraries_to_file():
    speak("before")
    if "--keep" in sys.argv:
        from pathlib import Path
        keep_in(Path("run"))
        print("later")
print("the end")
"""
LIBRARIES = ("A log", "a warning", "a print", "a bar", "its own handler")


def spoken(folder, *options):
    (folder / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", NOISE, *options],
        cwd=folder, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    path = folder / "run" / FILE
    return done.stdout + done.stderr, path.read_text() if path.exists() else None


def test_libraries_are_in_the_runs_file_and_the_project_on_the_screen(tmp_path):
    screen, file = spoken(tmp_path, "--keep")
    assert [words for words in LIBRARIES if words in screen] == []
    assert [words for words in (*LIBRARIES, "An error", "later") if words not in file] == []
    for words in ("own words", "An error", "a table", "the end"):
        assert words in screen
        assert words == "An error" or words not in file


def test_a_run_that_never_began_writes_nothing(tmp_path):
    screen, file = spoken(tmp_path)
    assert file is None
    assert "a print" not in screen


def test_verbose_shows_all_and_writes_nothing(tmp_path):
    screen, file = spoken(tmp_path, "--keep", "--verbose")
    assert [words for words in (*LIBRARIES, "own words") if words not in screen] == []
    assert file is None


def test_the_hub_says_nothing_twice():
    """Its own handler is there once it is imported."""
    code = (
        "from launch.run.messages import show_own_logs; show_own_logs()\n"
        "from huggingface_hub.utils import logging\n"
        "logging.get_logger('huggingface_hub.utils').warning('Retrying')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert (done.stdout + done.stderr).count("Retrying") == 1


def test_where_nothing_is_said_there_is_no_file(tmp_path):
    with libraries_to_file():
        keep_in(tmp_path)
        logging.getLogger("launch.test").warning("own words")
    assert list(tmp_path.iterdir()) == []


def test_the_first_run_of_a_process_keeps_the_file_of_those_in_it(tmp_path):
    """Of a pipeline and its stages."""
    with libraries_to_file():
        for name in ("pipeline", "stage"):
            (tmp_path / name).mkdir()
            keep_in(tmp_path / name)
            print(name)
    assert (tmp_path / "pipeline" / FILE).read_text() == "pipeline\nstage\n"
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_failure_names_the_file_and_all_is_as_before(tmp_path, caplog):
    before = (sys.stdout, sys.stderr, warnings.showwarning, list(logging.getLogger().handlers))
    with caplog.at_level(logging.INFO, "launch"), pytest.raises(ConfigError), libraries_to_file():
        keep_in(tmp_path)
        print("a print")
        raise ConfigError("wrong")
    assert str(tmp_path / FILE) in caplog.text
    assert before == (sys.stdout, sys.stderr, warnings.showwarning, logging.getLogger().handlers)


def test_every_job_takes_verbose_and_says_so(capsys):
    assert cli.main(["--help"]) == 0
    assert "--verbose" in capsys.readouterr().out
    assert cli.main(["sft", "--verbose"]) == 2
    assert "needs a configuration file" in capsys.readouterr().err


@pytest.mark.parametrize("verbose", [True, False])
def test_a_submitted_job_is_told_of_verbose(verbose):
    class Api:
        def put_bytes(self, name, content):
            pass

        def submit_job(self, *, entrypoint, **_):
            self.entrypoint = entrypoint

    api, payload = Api(), Payload(job="sft", values={"run_dir": "/runs/x"}, variables={})
    submit._send(api, "x", payload, Namespace(working_dir=None, verbose=verbose), [])
    assert api.entrypoint.endswith(".zip --verbose" if verbose else ".zip")


def test_a_failed_run_says_where_the_logs_of_actors_are(monkeypatch, caplog):
    monkeypatch.setattr(cluster, "connect", lambda run, roles: "/tmp/ray/session_x")
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    caplog.set_level(logging.INFO, "launch")
    with pytest.raises(RunError), cluster.connected(None, {}):
        raise RunError("policy/0 died")
    assert "/tmp/ray/session_x/logs" in caplog.text
