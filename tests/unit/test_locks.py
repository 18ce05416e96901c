"""The locked packages fit each other: what is installed here, and how the GPU lock is checked."""

from __future__ import annotations

import importlib.metadata
import io
import zipfile
from collections import defaultdict
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements.check import best_wheel, lock_faults, overlaps, versions_of
from requirements.remote_wheel import Wheel, installed_files

ROOT = Path(__file__).parents[2]
# vLLM runs without them on a CPU, where only builds for CUDA are to be had.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


@cache
def installed():
    """What of cpu.lock is installed here, by name."""
    found = {}
    for name in versions_of((ROOT / "requirements/cpu.lock").read_text()):
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    assert len(found) > 150
    return found


def requirements_of(distribution, extras):
    for line in distribution.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def test_the_cpu_lock_has_what_its_packages_require():
    versions = versions_of((ROOT / "requirements/cpu.lock").read_text())
    # Of torch the lock says no more than the version: its index says that it is the CPU build.
    versions |= {name: distribution.version for name, distribution in installed().items()}
    extras = defaultdict(set)
    faults, changed = set(), True
    while changed:  # until no package asks for a further extra of another
        changed = False
        for name, distribution in installed().items():
            for requirement in requirements_of(distribution, extras[name]):
                needed = canonicalize_name(requirement.name)
                changed |= not requirement.extras <= extras[needed]
                extras[needed] |= requirement.extras
                version = versions.get(needed)
                if version is None or not requirement.specifier.contains(version, prereleases=True):
                    faults.add((name, str(requirement), version))
    missing = {canonicalize_name(Requirement(needed).name) for _, needed, _ in faults}
    assert missing == LEFT_OUT, sorted(faults, key=str)


def test_no_two_packages_of_the_cpu_lock_bring_different_files_to_one_place():
    files = {
        name: {
            str(file): file.hash.value
            for file in distribution.files or []
            if file.hash and ".dist-info/" not in str(file)
        }
        for name, distribution in installed().items()
    }
    assert sum(map(len, files.values())) > 10_000
    assert list(overlaps(files)) == []


def test_files_that_differ_in_two_packages_are_named():
    files = {
        "cuda-bindings": {"cuda/bindings/driver.so": 1, "cuda/bindings/nvml.so": 2},
        "cuda-python": {"cuda/bindings/driver.so": 3, "cuda/bindings/nvml.so": 4},
        "opencensus": {"opencensus/__init__.py": 5, "build_backend.py": 6},
        "opencensus-context": {"opencensus/__init__.py": 5, "build_backend.py": 7},
    }
    [fault] = overlaps(files)
    assert fault == (
        "2 files differ in cuda-bindings and cuda-python, such as cuda/bindings/driver.so"
    )


def test_what_a_lock_lacks_or_has_for_nothing_is_named():
    wanted = versions_of("torch==2.13.0\n    # via vllm\nNumPy==2.3.5\n")
    locked = versions_of("# a comment==1\ntorch==2.13.0\nleft_over==1.0\n")
    assert list(lock_faults(locked, wanted)) == [
        "gpu.lock lacks numpy (such as 2.3.5), which its packages require",
        "gpu.lock has left-over, which nothing in it requires",
    ]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a-1-py3-none-any.whl", "a-1-cp312-cp312-manylinux_2_28_x86_64.whl"], 1),
        (["a-1-cp38-abi3-manylinux_2_28_x86_64.whl", "a-1-cp311-cp311-manylinux1_x86_64.whl"], 0),
        (["a-1-cp312-cp312-manylinux_2_28_aarch64.whl", "a-1-py3-none-any.whl"], 1),
        (["a-1-cp312-cp312-win_amd64.whl", "a-1-cp312-cp312-manylinux_2_41_x86_64.whl"], None),
    ],
)
def test_the_wheel_is_the_one_that_pip_takes(names, chosen):
    expected = None if chosen is None else names[chosen]
    assert best_wheel(names) == expected
    assert best_wheel(names[::-1]) == expected


@pytest.fixture
def served():
    """`served(data)`: the address of a file, of which any part can be had."""
    servers = []

    def serve(data):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                self.send_response(206)
                self.end_headers()
                self.wfile.write(data[int(first) : int(last) + 1])
                asked.append(int(last) + 1 - int(first))

            def log_message(self, *arguments):
                pass

        asked = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/a-1-py3-none-any.whl", asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_wheels_files_are_listed_without_all_of_it(served):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, size in {
            "a/model.bin": 2**22,
            "a/__init__.py": 3,
            "a-1.data/purelib/b.py": 3,
            "a-1.data/scripts/a": 3,
            "a-1.dist-info/RECORD": 3,
        }.items():
            archive.writestr(name, b"x" * size)
    data = buffer.getvalue()
    url, asked = served(data)
    files = installed_files(Wheel(package="a", url=url, size=len(data)))
    assert set(files) == {"a/model.bin", "a/__init__.py", "b.py", "<scripts>/a"}
    assert files["a/__init__.py"] == files["b.py"] != files["a/model.bin"]
    assert sum(asked) < len(data) / 4
