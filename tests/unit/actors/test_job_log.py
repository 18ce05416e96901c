"""Following a job's log with a cluster that is played: pieces, breaks, ends."""

import aiohttp
import pytest
from fake_jobs import SILENCE, Played, Said
from ray.job_submission import JobStatus

from actors.jobs import log as job_log
from actors.jobs.log import exit_status, follow
from rlhf_ray.errors import ConfigError, RunError

RUNNING, DONE = Said(JobStatus.RUNNING), Said(JobStatus.SUCCEEDED, 0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(job_log, "RETRY_S", 0.0)


async def followed(played, **deadlines):
    written: list[str] = []
    said = await follow(played, "job", written.append, **deadlines)
    return said, "".join(written)


async def test_a_log_is_shown_whole():
    assert await followed(Played([["a\n", "b\n"]], [DONE])) == (DONE, "a\nb\n")


@pytest.mark.parametrize("error", [RuntimeError("closed"), aiohttp.ClientError(), OSError()])
async def test_after_a_break_nothing_is_shown_twice_or_left_out(error):
    played = Played([["a\nb", error], ["a\n", "b\nc\n"]], [RUNNING, DONE])
    assert await followed(played) == (DONE, "a\nb\nc\n")


async def test_the_end_that_came_during_a_break_is_shown():
    played = Played([["a\n", OSError()], ["a\n", "end\n"]], [DONE])
    assert await followed(played) == (DONE, "a\nend\n")


async def test_a_silent_connection_of_a_job_that_has_ended_is_left():
    said, text = await followed(Played([["a\n", SILENCE]], [RUNNING, DONE]), quiet_s=0.01)
    assert (said, text) == (DONE, "a\n")


async def test_a_cluster_that_is_gone_is_given_up():
    gone = RunError("http://head does not answer any more")
    with pytest.raises(RunError, match="does not answer any more; the job may still run"):
        await followed(Played([[OSError()]], [gone]), lost_s=-1.0)


async def test_a_job_that_is_not_there():
    with pytest.raises(ConfigError, match="knows no job 'job'"):
        await followed(Played([[RuntimeError()]], [None]))


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_the_exit_status_is_the_jobs_own(status, code, expected):
    assert exit_status(Said(status, code)) == expected


async def test_a_log_that_cannot_be_followed_is_fetched_when_the_job_has_ended(caplog):
    refusals = [[OSError("no websockets here")] for _ in range(3)]
    played = Played([["a\n", OSError("no websockets here")], *refusals], [RUNNING, DONE])
    said, text = await followed(played, rest_s=0.0)
    assert (said, text) == (DONE, "a\nwhole\n")
    assert "no websockets here" in caplog.text
