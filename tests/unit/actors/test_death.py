"""What Ray says of a death becomes one line with the node and the reason."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

from actors.cluster.death import MOST_CHARACTERS, death_of

FIELDS = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: PolicyRank\n"
    "\tactor_id: 5079acdcb35b370f1e06d0c001000000\n\tpid: 31937\n\tname: job/policy/3\n"
    "\tnamespace: 79fcde48\n\tip: 10.0.0.2\n"
)
OOM = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some "
    "common causes include: (1) the process was killed by the OOM killer due to high memory usage, "
    "(2) ray stop --force was called, or (3) the worker crashed unexpectedly due to SIGSEGV."
)
NODE = (
    "The actor is dead because its node has died. Node Id: 1f3a\n"
    "\tthe actor's node was terminated unexpectedly: health check failed"
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (FIELDS + NODE, "on 10.0.0.2: The actor is dead because its node has died. Node Id: 1f3a "
         "the actor's node was terminated unexpectedly: health check failed"),
        (FIELDS + "The actor is dead because it was killed by `ray.kill`.",
         "on 10.0.0.2: The actor is dead because it was killed by `ray.kill`."),
        ("The actor died unexpectedly before finishing this task.",
         "The actor died unexpectedly before finishing this task."),
    ],
    ids=["node", "killed", "unknown"],
)  # fmt: skip
def test_a_death_says_where_it_was_and_why(said, expected):
    assert death_of(RayActorError(error_msg=said)) == expected


def test_what_is_long_ends_behind_the_memory():
    line = death_of(RayActorError(error_msg=FIELDS + OOM))
    assert "killed by the OOM killer" in line
    assert "\n" not in line
    assert len(line) <= MOST_CHARACTERS + len("on 10.0.0.2: ")


def test_one_that_died_in_its_start_says_what_was_raised_there():
    said = (
        "The actor died because of an error raised in its creation task, ray::Rank.__init__() "
        "(pid=32054, ip=10.0.0.2, actor_id=157c, repr=<Rank>)\n"
        '  File "rank.py", line 6, in __init__\nValueError: no such\nmodel'
    )
    error = RayActorError(error_msg=said, actor_init_failed=True)
    assert death_of(error) == "on 10.0.0.2: ValueError: no such model"


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("no route", b"1" * 16)])
def test_others_are_said_as_ray_says_them(error):
    assert death_of(error) == " ".join(str(error).split())
