"""What a pool has its roles do around a job: the actors only write down what they are asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from fake_actors import ActorOfRole
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.cluster.run_files import RunFiles
from actors.engines.replica_spec import ReplicaSpec
from actors.engines.spec import EngineSpec
from actors.pool import placement, processes
from actors.pool.pool import UNKNOWN, Pool
from actors.pool.state import Place
from actors.ranks.group import RankSpec
from actors.ranks.hosting import HostingRank
from actors.ranks.reward_worker import RewardWorker, WorkerSpec
from actors.roles.lasting import repeated
from actors.roles.start import start_all
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.rollout import EngineConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import ActorDied, RunError


def health(*, fault: str = "", updating: bool = False) -> dict[str, Any]:
    """What an engine's actor says of it."""
    return {"name": "pool/rollout/0", "version": 3, "fault": fault, "updating": updating}


def engines(*, sleeps: bool = True, tokens: int = 128) -> ReplicaSpec:
    """Of a job."""
    return ReplicaSpec(
        engine=EngineSpec(
            model_path="base",
            tokenizer_path="base",
            revision="",
            identity="",
            trust_remote_code=False,
            engine=EngineConfig(),
            max_model_len=tokens,
            num_gpus=1,
            weight_backend="ipc",
            sleeps=sleeps,
        )
    )


RANKS = RankSpec(actor_class=HostingRank)


async def dies(*arguments: Any) -> Any:
    """In place of any call."""
    raise RunError("the driver ends")


def actors(role: str, spec: RoleSpec, asked: list[tuple[Any, ...]]) -> dict[str, ActorOfRole]:
    """By their names."""
    return {
        f"pool/{role}/{rank}": ActorOfRole(
            role,
            rank,
            spec.actor_class,
            asked,
            keep=[f"{role}{rank}"],
            health=health(),
            open_store=("h", 1),
        )
        for rank in range(2)
    }


@pytest.fixture
def asked() -> list[tuple[Any, ...]]:
    """Role, method and arguments of every call, once a role."""
    return []


@pytest.fixture(autouse=True)
def no_processes(monkeypatch, asked) -> None:
    """In place of actors come fakes, which nobody has to kill."""

    def start(name, spec, group, places, **options):
        role = name.rpartition("/")[2]
        asked.append((role, "started"))
        of_role, only = actors(role, spec, asked), options.get("only")
        return (
            of_role if only is None else {name: of_role[name] for name in list(of_role)[only[0] :]}
        )

    def get_actor(name, namespace):
        raise ValueError("killed")

    monkeypatch.setattr(processes, "start", start)
    monkeypatch.setattr(processes.ray, "kill", lambda actor: None)
    monkeypatch.setattr(processes.ray, "get_actor", get_actor)
    monkeypatch.setattr(placement, "moved", lambda places: [*places])


@pytest.fixture
def pool(asked) -> Pool:
    """Policy, reward and engines on one group's GPUs; the reference on its own."""
    pool = Pool("pool", TimeoutConfig())
    shared = GroupConfig(gpus_per_rank=1, share="policy")
    pool.state.groups = {
        "policy": GroupConfig(gpus_per_rank=1),
        "reference": GroupConfig(gpus_per_rank=1),
        "reward": shared,
        "rollout": shared,
    }
    place = Place(group=None, bundle=0, node_id="node", address="10.0.0.1", gpus=("0",))
    pool.state.places = {"policy": [place], "reference": [place]}
    for role in pool.state.groups:
        handle = pool.state.roles[role] = RoleHandle(role)
        spec = engines() if role == "rollout" else RANKS
        handle.replace(actors(role, spec, asked), spec=spec)
    return pool


def job(folder: str, *, export: str = "end") -> JobConfig:
    return JobConfig.model_validate({"run_dir": folder, "checkpoint": {"export": export}})


async def test_what_a_job_does_not_use_leaves_its_gpus(pool, asked):
    await pool.load("reward", "spec", path="rm")
    await pool.load("reference", "spec", path="base")
    asked.clear()
    await pool.make_room(["policy"])
    asleep = ("rollout", "sleep", 2, pool.timeouts.call_s)
    assert asked == [("reward", "unload"), asleep]
    await pool.make_room(["policy"])
    assert asked[2:] == [asleep], "a role without a model has nothing to release"


async def test_what_a_job_before_left_on_shared_gpus_is_not_there_while_models_load(pool, asked):
    for role in ("policy", "reward", "reference"):
        await pool.load(role, "spec", path="base")
    asked.clear()
    await pool.make_room(["policy", "reward", "rollout", "reference"])
    assert asked == [("policy", "unload"), ("reward", "unload")], "the reference is by itself"


async def test_engines_that_cannot_sleep_end(pool, asked):
    """A GRPO job without a reference shares its GPUs with nobody; then DPO wants them for one."""
    pool.state.roles["rollout"].spec = engines(sleeps=False)
    await pool.make_room(["policy"])
    assert asked == [("rollout", "stop")]
    assert "rollout" not in pool.state.roles


async def test_engines_on_cpus_are_left_alone(pool, asked):
    pool.state.groups["rollout"] = GroupConfig(share="policy")
    await pool.make_room(["policy"])
    assert asked == []


async def test_a_model_on_the_engines_gpus_goes_on_to_the_host(pool, asked):
    await pool.load("policy", "spec", path="base", leaves=True)
    await pool.load("reference", "spec", path="base")
    assert asked == [
        ("policy", "load", "spec", []), ("policy", "offload"), ("reference", "load", "spec", [])
    ]  # fmt: skip


async def test_an_engine_starts_on_gpus_that_models_have_left(pool, asked):
    """Those of a job before, which their ranks hold still."""
    for role in ("policy", "reference"):
        await pool.load(role, "spec", path="base")
    asked.clear()

    del pool.state.roles["rollout"]
    await pool.start("rollout", engines())
    assert asked == [("policy", "offload"), ("rollout", "started"), ("rollout", "start")]


async def test_nobody_has_to_leave_a_group_of_its_own(pool, asked):
    await pool.load("policy", "spec", path="base")
    asked.clear()
    await pool.make_room(["reference"])
    assert asked == []


async def test_roles_compute_in_turn_where_they_live_on_the_same_gpus(pool):
    policy, reward, reference = [
        await pool.start(role, RANKS) for role in ("policy", "reward", "reference")
    ]
    assert policy.gpu_turns is reward.gpu_turns is not None
    assert reference.gpu_turns is None


@pytest.mark.parametrize("gpus", [0, 1])
async def test_a_guest_on_a_cpu_takes_no_turns_on_gpus(pool, gpus):
    shared = GroupConfig(share="policy")
    pool.state.groups = {"policy": GroupConfig(gpus_per_rank=gpus), "reward": shared}
    assert (await pool.start("policy", RANKS)).gpu_turns is None
    assert (await pool.start("reward", RANKS)).gpu_turns is None


async def test_roles_on_cpus_share_cores_and_compute_with_what_the_job_leaves_them(
    pool, asked, monkeypatch
):
    monkeypatch.setattr(placement, "cores", lambda: {"node": 8})
    pool.state.groups = {"policy": GroupConfig(), "reference": GroupConfig()}
    pool.state.groups["rollout"] = GroupConfig(share="policy")
    asked.clear()
    for works_beside, threads in ((False, 8), (True, 4)):
        rollout = replace(engines(), works_beside=works_beside)
        pool.share_cores({"policy": RANKS, "rollout": rollout})
        policy, reference = [await pool.start(role, RANKS) for role in ("policy", "reference")]
        [(turns, number)] = policy.core_turns
        assert [(turns, number)] == reference.core_turns
        assert (turns.places, number, policy.threads) == (threads, threads, threads)
        engine = await pool.start("rollout", rollout)
        assert (engine.threads, engine.core_turns) == (threads, [])
    used = [call for call in asked if call[1] == "use_threads"]
    roles = ("policy", "reference", "rollout")
    assert used == [(role, "use_threads", n) for n in (8, 4) for role in roles], (
        "once for each job that changes it"
    )
    assert not [call for call in asked if call[1] in ("started", "start")], "the same engines"


async def test_a_job_after_one_that_changed_threads_knows_how_many_there_are(
    pool, asked, monkeypatch
):
    """PPO after GRPO on a standing pool, also where the driver died while it told them."""
    monkeypatch.setattr(placement, "cores", lambda: {"node": 8})
    pool.state.groups = {"policy": GroupConfig(), "value": GroupConfig()}
    pool.state.places["value"] = pool.state.places["policy"]
    written = []
    monkeypatch.setattr(
        pool, "_remember", lambda: written.append(pool.state.roles["policy"].threads)
    )
    for roles, threads in ((("policy",), 8), (("policy", "value"), 4)):
        pool.share_cores(dict.fromkeys(roles, RANKS))
        policy = await pool.start("policy", RANKS)
        assert policy.threads == threads
    assert written == [UNKNOWN, 8, UNKNOWN, 4]
    monkeypatch.setattr(policy, "call", lambda *_, **__: dies)
    pool.share_cores({"policy": RANKS})
    with pytest.raises(RunError):
        await pool.start("policy", RANKS)
    assert written[-1] == policy.threads == UNKNOWN


async def test_a_result_that_nobody_wants_is_only_written(pool, asked):
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    assert asked == [("policy", "export", "runs/a/export", "tokenizer")]
    assert not pool.state.models


async def test_a_wanted_result_is_loaded_from_memory_until_it_is_no_longer_wanted(pool, asked):
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a", export="never"), "policy", "tokenizer")
    assert [call[1] for call in asked] == ["describe", "keep"]
    held = pool.state.models["runs/a/export"]
    assert held.bucket_refs == ("policy0", "policy1")

    await pool.load("reference", "spec", path="runs/a/export")
    assert asked[-1] == ("reference", "load", "spec", [held])
    await pool.load("reference", "spec", path="elsewhere")
    assert asked[-1] == ("reference", "load", "spec", [])

    await pool.want(["runs/b/export"])
    assert asked[-1] == ("policy", "drop", "runs/a/export")
    assert not pool.state.models


async def test_jobs_of_a_role_each_keep_what_another_still_wants(pool):
    await pool.want(["runs/a/export", "runs/b/export"])
    for folder in ("runs/a", "runs/b"):
        await pool.finish(job(folder), "policy", "tokenizer")
    assert list(pool.state.models) == ["runs/a/export", "runs/b/export"]


async def test_a_pool_that_is_well_keeps_its_actors(pool, asked):
    before = dict(pool.state.roles)
    await pool.heal()
    assert pool.state.roles == before
    assert ("rollout", "health") in asked
    assert not [call for call in asked if call[1] == "stop"]


@pytest.mark.parametrize(
    "sick",
    [health(updating=True), health(fault="its engine died")],
    ids=["amid a publication", "dead"],
)
async def test_engines_that_cannot_serve_are_ended_although_their_actors_answer(
    pool, asked, caplog, sick
):
    pool.state.roles["rollout"].actors[1].answers["health"] = sick
    await pool.heal()
    assert set(pool.state.roles) == {"policy", "reference", "reward"}
    assert [call for call in asked if call[1] == "stop"] == [("rollout", "stop")]
    assert "rollout is started anew" in caplog.text


async def test_engines_that_were_ended_are_started_again_with_the_same_specification(pool, asked):
    pool.state.roles["rollout"].actors[0].answers["health"] = health(updating=True)
    await pool.heal()
    asked.clear()
    started = await pool.start("rollout", engines())
    assert asked == [("rollout", "started"), ("rollout", "start")]
    assert await pool.start("rollout", engines()) is started


async def test_who_keeps_a_roles_handle_asks_the_actors_that_came_after(pool, asked):
    handle = pool.state.roles["rollout"]
    before, incarnation = list(handle.actors), handle.incarnation
    assert await pool.start("rollout", engines(tokens=256)) is handle
    assert asked == [("rollout", "stop"), ("rollout", "started"), ("rollout", "start")]
    assert not set(handle.actors) & set(before)
    assert handle.incarnation == incarnation + 1
    assert handle.spec == engines(tokens=256)


async def test_a_role_that_does_not_answer_is_ended_with_what_it_holds(pool):
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    for actor in pool.state.roles["policy"].actors:
        actor.answers |= dict.fromkeys(("process_id", "stop"), RunError("no answer"))
    await pool.heal()
    assert "policy" not in pool.state.roles
    assert not pool.state.models
    assert "policy" in pool.state.groups, "its place stays reserved"


@pytest.mark.parametrize(
    "failed", [RunError("no room"), asyncio.CancelledError()], ids=["failed", "cancelled"]
)
async def test_a_role_whose_actors_did_not_join_is_not_taken_for_one_that_did(
    pool, monkeypatch, failed
):
    async def join(spec, handle, *, new, on_gpu, timeouts):
        raise failed

    killed = []
    monkeypatch.setattr(RankSpec, "join", join)
    monkeypatch.setattr(processes.ray, "kill", killed.append)
    await pool.end("reference")
    killed.clear()
    with pytest.raises(type(failed)):
        await pool.start("reference", RANKS)
    assert "reference" not in pool.state.roles
    assert len(killed) == 2


async def test_a_role_that_is_started_again_hosts_what_it_hosted(pool, asked):
    await pool.load("reward", "spec", path="rm", leaves=True)
    handle = pool.state.roles["reward"]
    before, incarnation = list(handle.actors), handle.incarnation
    asked.clear()
    await pool.restart("reward")
    assert [call[1:] for call in asked] == [
        ("started",), ("health",), asked[2][1:], asked[3][1:], ("load", "spec", []),
        ("offload",),
    ]  # fmt: skip
    assert [call[1] for call in asked[2:4]] == ["open_store", "join"]
    assert pool.state.roles["reward"] is handle
    assert not set(handle.actors) & set(before), "a process group takes no new rank"
    assert (handle.incarnation, handle.hosted.path) == (incarnation + 1, "rm")
    assert handle.names == ["pool/reward/0", "pool/reward/1"]


async def test_nobody_is_asked_before_it_is_ready(pool, monkeypatch):
    """Who calls meanwhile meets the dead, and waits."""
    handle = pool.state.roles["reward"]
    before = list(handle.actors)

    async def join(spec, role, *, new, on_gpu, timeouts):
        assert handle.actors == before
        assert role is not handle
        raise RunError("no room")

    monkeypatch.setattr(RankSpec, "join", join)
    with pytest.raises(RunError, match="no room"):
        await pool.restart("reward")
    assert handle.actors == before


async def test_only_engines_that_are_of_no_use_are_started_again(pool, asked):
    handle = pool.state.roles["rollout"]
    first, second = handle.actors
    second.answers["health"] = health(updating=True)
    asked.clear()
    await pool.restart("rollout")
    assert handle.actors[0] is first
    assert handle.actors[1] is not second


async def test_beside_a_worker_that_is_started_again_the_others_are_asked_for_nothing(pool):
    spec = WorkerSpec(actor_class=RewardWorker)
    handle = await pool.start("reward_worker", spec)
    await pool.load("reward_worker", "scorers", path="")
    first, second = handle.actors
    asked_of_first = first.asked = []
    second.answers["health"] = RayActorError()
    await pool.restart("reward_worker")
    assert handle.actors[0] is first
    assert handle.actors[1] is not second
    assert [call[1:] for call in asked_of_first] == [("health",)]
    assert handle.core_turns == []


async def test_one_engine_is_started_again_without_a_question_to_the_others(pool, asked):
    """Another one may be dead as well, and on its way."""
    handle = pool.state.roles["rollout"]
    first, second = handle.actors
    first.answers["health"] = RunError("it is dead too")
    await pool.restart("rollout", [1])
    assert handle.actors[0] is first
    assert handle.actors[1] is not second


async def test_what_dead_ranks_kept_is_read_from_the_disk_where_it_was_written(
    pool, asked, tmp_path
):
    written, unwritten = (str(tmp_path / name / "export") for name in ("a", "b"))
    await pool.want([written, unwritten])
    for folder in ("a", "b"):
        await pool.finish(job(str(tmp_path / folder)), "policy", "tokenizer")
    (tmp_path / "a/export").mkdir(parents=True)
    (tmp_path / "a/export/model.safetensors").touch()
    await pool.restart("policy")
    assert not pool.state.models
    asked.clear()
    await pool.load("reference", "spec", path=written)
    assert asked == [("reference", "load", "spec", [])]
    with pytest.raises(RunError, match=r"b/export was kept in memory alone.*checkpoint\.export"):
        await pool.load("reference", "spec", path=unwritten)


async def test_a_role_that_dies_while_it_starts_is_started_again(pool, asked, monkeypatch):
    deaths = [ActorDied.of("died", role="reference", index=0, operation="join", age_s=1.0)]

    async def join(spec, handle, *, new, on_gpu, timeouts):
        if deaths:
            raise deaths.pop()

    monkeypatch.setattr(RankSpec, "join", join)
    await pool.end("reference")
    asked.clear()
    handle = await pool.start("reference", RANKS)
    assert [call[1] for call in asked] == ["started", "stop", "started"]
    assert pool.state.roles["reference"] is handle


async def test_ranks_of_a_node_that_is_gone_join_on_another_and_their_files_go_there(
    pool, monkeypatch
):
    """A guest's places are its host's, and whoever else lives there finds them moved."""
    there = {"distant": {"node": "10.0.0.1", "other": "10.0.0.7"}, "ranks": ("node", "other")}
    pool.files = RunFiles(**there, timeout_s=5.0)
    pool.state.groups["reward"] = GroupConfig(share="policy", ranks=2)
    joined = []

    async def join(spec, role, *, new, on_gpu, timeouts):
        joined.append([place.node_id for place in pool.state.places_of(role.name)])

    monkeypatch.setattr(RankSpec, "join", join)
    monkeypatch.setattr(
        placement,
        "moved",
        lambda places: [replace(place, node_id="new", address="10.0.0.9") for place in places],
    )
    files_of = partial(pool.files_of, "policy")
    assert files_of().ranks == ("node",)
    await pool.restart("reward")
    assert joined == [["new", "new"]]
    assert files_of() == replace(pool.files, ranks=("new",))
    assert pool.files == RunFiles(
        distant={"other": "10.0.0.7", "new": "10.0.0.9"}, ranks=("new", "other"), timeout_s=5.0
    )
    assert pool.state.places["reference"][0].node_id == "node", "it is asked for its own"


async def test_nothing_comes_in_the_place_of_a_role_that_has_ended(pool, asked, monkeypatch):
    """It would have the names of the actors that are started next."""
    await pool.start("reward", RANKS)
    asked.clear()
    monkeypatch.setattr(pool.state.roles["reward"].spec.__class__, "join", dies_later)
    died = ActorDied.of("died", role="reward", index=0, operation="score", age_s=0.0)
    waits = asyncio.create_task(pool.restarts.after(died, pool.state.roles))
    while ("reward", "started") not in asked:
        await asyncio.sleep(0)
    await pool.end("reward")
    with pytest.raises(RunError, match="reward was ended while it was started again"):
        await waits
    assert asked.count(("reward", "started")) == 1


async def dies_later(*arguments: Any, **keywords: Any) -> None:
    """In place of a start that takes a while."""
    await asyncio.sleep(60)


async def test_a_role_that_dies_as_it_is_told_its_threads_is_started_anew(pool, asked, monkeypatch):
    monkeypatch.setattr(placement, "cores", lambda: {"node": 8})
    pool.state.groups = {"policy": GroupConfig()}
    pool.share_cores({"policy": RANKS})
    policy = pool.state.roles["policy"]
    policy.actors[0].answers["use_threads"] = RayActorError(error_msg="its node is gone")
    asked.clear()
    assert await pool.start("policy", RANKS) is policy
    assert [call[1] for call in asked][:3] == ["use_threads", "stop", "started"]
    assert policy.threads == 8


@pytest.mark.parametrize("work", ["start", "import", "want"])
async def test_a_death_at_the_start_of_a_stage_is_recovered_from(pool, asked, monkeypatch, work):
    """Of a role that is there: it has a result in memory, imports, or makes room for another."""
    monkeypatch.setattr(pool, "place", lambda groups: None)
    monkeypatch.setattr(pool, "share_cores", lambda specs: None)
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    dying = {"start": "offload", "import": "import_libraries", "want": "drop"}[work]
    policy = pool.state.roles["policy"]
    policy.actors[0].answers[dying] = RayActorError(error_msg="its node is gone")
    if work == "want":
        await repeated(pool, partial(pool.want, []))
        assert not pool.state.models
    else:
        specs = {"policy": RANKS, "rollout": engines(tokens=64)}
        await start_all(pool, pool.state.groups, specs)
        assert ("policy", "import_libraries") in asked
    assert ("policy", "started") in asked
    assert policy.incarnation > 1
