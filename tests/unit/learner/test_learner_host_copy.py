"""Storages that wait on the host: their bytes, their views, and what has none to keep."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_ray.errors import RunError
from rlhf_ray.learner.deepspeed.residency import HostCopy, storages_of

CPU = torch.device("cpu")


def storages(*tensors):
    return [tensor.untyped_storage() for tensor in tensors]


def resident_bytes():
    [kilobytes] = re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


@pytest.mark.parametrize("chunk_bytes", [16, 48, 4096])
def test_every_byte_and_view_comes_back_however_the_host_is_cut_up(chunk_bytes):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        for size in (1, 15, 16, 17, 100, 333)
    ]
    views = [tensor[len(tensor) // 2 :] for tensor in tensors]
    wanted = [tensor.clone() for tensor in tensors]
    copy = HostCopy(CPU, chunk_bytes=chunk_bytes)
    for _ in range(2):
        copy.offload(storages(*tensors))
        assert [storage.nbytes() for storage in storages(*tensors)] == [0] * 6
        assert copy.num_bytes == sum(len(tensor) for tensor in wanted)
        num_chunks = len(copy._chunks)
        copy.reload()
        assert copy.num_bytes == 0
        for tensor, view, want in zip(tensors, views, wanted, strict=True):
            assert torch.equal(tensor, want)
            assert view.data_ptr() == tensor.data_ptr() + len(tensor) // 2
    assert len(copy._chunks) == num_chunks, "the host's memory is kept, and no more is taken"


def test_what_is_not_worth_keeping_takes_no_room_on_the_host():
    kept, sums, scratch = (torch.arange(9.0) for _ in range(3))
    copy = HostCopy(CPU)
    copy.offload(storages(kept), sums=storages(sums), scratch=storages(scratch))
    assert copy.num_bytes == 36
    assert [x.untyped_storage().nbytes() for x in (kept, sums, scratch)] == [0, 0, 0]
    copy.reload()
    assert kept.tolist() == list(range(9))
    assert sums.tolist() == [0.0] * 9
    assert scratch.untyped_storage().nbytes() == 36


def test_scratch_comes_back_without_being_touched():
    """A bucket of DeepSpeed's is 2 GB, however small the model."""
    scratch = torch.empty(2**28)
    copy = HostCopy(CPU)
    before = resident_bytes()
    copy.offload([], scratch=storages(scratch))
    copy.reload()
    assert scratch.untyped_storage().nbytes() == 2**30
    assert resident_bytes() - before < 2**26


def test_nothing_leaves_where_the_host_has_no_room(monkeypatch):
    tensors = [torch.ones(100), torch.ones(100)]
    copy = HostCopy(CPU, chunk_bytes=512)
    chunks = iter([torch.empty(512, dtype=torch.uint8)])

    def empty(*size, **keywords):
        if size[0] == 0:
            return original(*size, **keywords)
        if (chunk := next(chunks, None)) is None:
            raise RuntimeError("CUDA error: out of memory")
        return chunk

    original = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(RunError, match=r"pinned memory must be on the host.*out of memory"):
        copy.offload(storages(*tensors))
    assert [tensor.sum() for tensor in tensors] == [100.0, 100.0]
    assert copy.num_bytes == 0


class Scales:
    """As bitsandbytes has them: a plain object with others in it."""

    def __init__(self, *, nested=None):
        self.absmax, self.state2 = torch.ones(8), nested


def test_tensors_are_found_wherever_an_object_keeps_them():
    weight = torch.nn.Parameter(torch.ones(4))
    weight.quant_state = Scales(nested=Scales())
    weight.grad = torch.ones(4)
    module = torch.nn.Linear(2, 2, bias=False)
    module.register_buffer("table", torch.ones(3), persistent=False)
    inside = {"deep": [(module, {"weight": weight})], "elsewhere": torch.ones(5, device="meta")}
    holder = SimpleNamespace(inside=inside, itself=None, empty=torch.empty(0))
    holder.itself = holder
    found = storages_of(holder, CPU)
    tensors = [
        module.weight, module.table, weight, weight.grad,
        weight.quant_state.absmax, weight.quant_state.state2.absmax,
    ]  # fmt: skip
    assert set(found) == {storage._cdata for storage in storages(*tensors)}
    assert {storage._cdata for storage in storages(weight.grad)} == set(found) - set(
        storages_of(holder, CPU, gradients=False)
    )
    assert len(storages_of(holder, CPU, stop=(torch.nn.Module,))) == 4
