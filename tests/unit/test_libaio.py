"""Before anything is offloaded to a drive: is there what DeepSpeed compiles its operation with?"""

from __future__ import annotations

import importlib.machinery
import importlib.util

import pytest

from rlhf_ray.libaio import libaio_fault


@pytest.fixture
def deepspeed(tmp_path, monkeypatch):
    """The folder of an installed DeepSpeed, without operations that were built before."""
    spec = importlib.machinery.ModuleSpec("deepspeed", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "deepspeed")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "deepspeed/ops/aio").mkdir(parents=True)
    return tmp_path / "deepspeed"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """`compiler(script)`: what stands for the C++ compiler."""

    def make(script):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return make


def test_what_compiles_is_there(deepspeed, compiler):
    compiler('case "$*" in *-laio*) grep -q "include <libaio.h>" ;; *) exit 1 ;; esac')
    assert libaio_fault() is None


def test_missing_headers_are_named_with_their_package(deepspeed, compiler):
    compiler('echo "fatal error: libaio.h: No such file or directory" >&2; exit 1')
    fault = libaio_fault()
    assert "apt install libaio-dev" in fault
    assert "libaio.h: No such file or directory" in fault


def test_a_missing_compiler_is_named(deepspeed, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "there is no C++ compiler" in libaio_fault()


def test_flags_say_where_else_libaio_is(deepspeed, compiler, monkeypatch):
    compiler('case "$*" in *-I/opt/aio*-L/opt/aio*) exit 0 ;; *) exit 1 ;; esac')
    assert libaio_fault() is not None
    monkeypatch.setenv("CFLAGS", "-I/opt/aio/include")
    monkeypatch.setenv("LDFLAGS", "-L/opt/aio/lib")
    assert libaio_fault() is None


def test_what_was_built_with_deepspeed_needs_no_compiler(deepspeed, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    (deepspeed / "ops/aio/async_io_op.cpython-312-x86_64-linux-gnu.so").touch()
    assert libaio_fault() is None
