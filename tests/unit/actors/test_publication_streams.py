"""What stands for a card's streams knows a read that nothing orders after the write it needs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.publication.streams import Streams


def read_elsewhere(wait):
    """One stream writes, another reads; the host does something in between."""
    streams = Streams()
    first, second = streams.new(), streams.new()
    with streams.watched():
        with streams.entered(first):
            written = torch.zeros(8, dtype=torch.uint8)
        wait(streams, first, second)
        with streams.entered(second):
            torch.empty(2).copy_(written[:4].view(torch.float32).expand(2))
    return streams.take_races()


def test_a_read_on_another_stream_is_a_race():
    assert read_elsewhere(lambda *_: None) == ["aten.copy_.default of [2]"]
    assert read_elsewhere(lambda streams, first, second: second.synchronize())


@pytest.mark.parametrize(
    "wait",
    [
        lambda streams, first, second: first.synchronize(),
        lambda streams, first, second: streams.synchronize(),
    ],
    ids=["for the stream", "for all"],
)
def test_the_hosts_wait_orders_it(wait):
    assert read_elsewhere(wait) == []


def test_a_stream_does_its_own_work_in_order():
    streams = Streams()
    with streams.watched(), streams.entered(streams.new()):
        written = torch.zeros(4)
        written.add_(1)
        assert written.sum() == 4
    assert streams.take_races() == []


def test_what_was_written_again_on_the_readers_stream_is_no_race():
    streams = Streams()
    with streams.watched():
        with streams.entered(streams.new()):
            written = torch.zeros(4)
        with streams.entered(streams.new()):
            written.zero_()
            written + 1
    assert streams.take_races() == []
