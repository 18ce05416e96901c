"""What an import may drag in: the library neither Ray nor vLLM, the command line nothing heavy."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

EVERY_MODULE = """
import importlib, pkgutil, sys
import rlhf_ray
names = [module.name for module in pkgutil.walk_packages(rlhf_ray.__path__, "rlhf_ray.")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted({"ray", "vllm"} & sys.modules.keys()))
"""

COMMAND_LINE = """
import sys
import launch.cli
heavy = {"torch", "transformers", "deepspeed", "ray", "vllm", "datasets", "wandb", "numpy"}
print(*sorted(heavy & sys.modules.keys()))
"""

HELP = [str(Path(sys.executable).with_name("rlhf-ray")), "ppo", "--help"]


def output_of(script):
    """The words of the last line that a fresh interpreter prints (DeepSpeed logs before it)."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=240
    )
    return done.stdout.rstrip("\n").rpartition("\n")[2].split()


def test_the_library_imports_neither_ray_nor_vllm():
    num_modules, *found = output_of(EVERY_MODULE)
    assert found == []
    assert int(num_modules) > 20


def test_the_command_line_imports_nothing_heavy():
    assert output_of(COMMAND_LINE) == []


@pytest.mark.skipif(not Path(HELP[0]).exists(), reason="rlhf-ray is not installed here")
def test_help_answers_in_under_a_second():
    seconds = []
    for _ in range(3):  # the quickest of three, by processor time: others may use the same cores
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(HELP, capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0.0 < min(seconds) < 1.0
