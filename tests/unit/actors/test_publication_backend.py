"""A way for weights is taken only where it can work, on the GPUs on which ranks are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.pool.state import Place, guest_places
from rlhf_ray.config.placement import GroupConfig, PlacementConfig
from rlhf_ray.config.publication import backend_of

ROLES = ("policy", "rollout", "reference")


def gpus_of(placement):
    """The GPUs of each rank of each role: hosts have their own, guests lie on their host's."""

    def own_places(role):
        group = getattr(placement, role)
        where = {"group": None, "node_id": "node", "address": "10.0.0.1"}
        return [
            Place(
                **where,
                bundle=rank,
                gpus=tuple(f"{role}{rank}.{gpu}" for gpu in range(group.gpus_per_rank)),
            )
            for rank in range(group.ranks)
        ]

    found = {}
    for role in ROLES:
        group = getattr(placement, role)
        if group.share:
            places = guest_places(role, group, own_places(group.share))
        else:
            places = own_places(role)
        found[role] = [place.gpus for place in places]
    return found


@st.composite
def placements(draw):
    """Every way in which policy, rollout and a third role share GPUs that are enough for all."""
    shares = draw(
        st.sampled_from(
            [
                {},
                {"policy": "rollout"},
                {"rollout": "policy"},
                {"policy": "reference"},
                {"rollout": "reference"},
                {"policy": "reference", "rollout": "reference"},
            ]
        )
    )
    counts = st.integers(1, 8)
    groups = {
        "policy": {"ranks": draw(counts), "gpus_per_rank": draw(st.integers(0, 1))},
        "rollout": {"ranks": draw(counts), "gpus_per_rank": draw(st.sampled_from([0, 1, 2, 4]))},
        "reference": {"ranks": draw(counts), "gpus_per_rank": 1},
    }
    for role, host in shares.items():
        groups[role]["share"] = host
        asked = groups[role]["ranks"] * groups[role]["gpus_per_rank"]
        there = groups[host]["ranks"] * groups[host]["gpus_per_rank"]
        if asked > there:  # as many as the host has: what is left over is refused elsewhere
            groups[host] |= {"ranks": asked, "gpus_per_rank": 1}
    return PlacementConfig.model_validate(groups)


def works(backend, placement):
    """Whether a way works there, by what NCCL and CUDA IPC ask of GPUs."""
    gpus = gpus_of(placement)
    engine_gpus = {gpu for engine in gpus["rollout"] for gpu in engine}
    policy_gpus = [set(rank) for rank in gpus["policy"]]
    on_gpus = bool(engine_gpus) and all(policy_gpus)
    if backend == "nccl":
        return on_gpus and not policy_gpus[0] & engine_gpus
    if backend == "ipc":
        return on_gpus and engine_gpus <= set().union(*policy_gpus)
    return True


@given(placement=placements(), asked=st.sampled_from(["auto", "object_store", "ipc", "nccl"]))
def test_what_is_taken_works_and_what_works_is_not_refused(placement, asked):
    try:
        taken = backend_of(asked, policy=placement.policy, rollout=placement.rollout)
    except ValueError as error:
        if asked == "auto":
            # All that is left is copying through the hosts' memory, which is to be asked for.
            assert placement.rollout.gpus_per_rank
            assert not works("ipc", placement) and not works("nccl", placement)
            assert "object_store" in str(error)
        else:
            assert not works(asked, placement)
        assert "placement." in str(error) and "set " in str(error)
    else:
        assert works(taken, placement)
        assert asked in ("auto", taken)


def group(**keys):
    return GroupConfig(**{"gpus_per_rank": 1, **keys})


@pytest.mark.parametrize(
    ("asked", "policy", "rollout", "said"),
    [
        (
            "auto",
            group(share="rollout", ranks=4),
            group(ranks=8),
            "each of the engines' 8 GPUs (8 x 1), got placement.policy.ranks 4; set "
            "placement.policy.ranks to 8 or placement.rollout.ranks to 4",
        ),
        (
            "ipc",
            group(share="reference", ranks=1),
            group(share="reference", ranks=2, gpus_per_rank=2),
            "got placement.policy.ranks 1; set placement.policy.ranks to 4, with",
        ),
        (
            "nccl",
            group(ranks=8),
            group(share="policy", ranks=8),
            "placement.rollout.share: policy puts it on the first engine's; set "
            "publication.backend to auto or ipc",
        ),
        ("ipc", group(ranks=8), group(ranks=8), "have GPUs apart; set publication.backend to auto"),
        (
            "auto",
            group(gpus_per_rank=0),
            group(),
            "placement.policy.gpus_per_rank is 0 while placement.rollout has GPUs: set it to 1",
        ),
        (
            "nccl",
            group(),
            group(gpus_per_rank=0),
            "nccl moves memory from GPU to GPU, but placement.rollout.gpus_per_rank is 0: give",
        ),
    ],
)
def test_the_error_says_which_numbers_work(asked, policy, rollout, said):
    with pytest.raises(ValueError) as raised:
        backend_of(asked, policy=policy, rollout=rollout)
    assert said in str(raised.value)


def test_the_numbers_of_an_error_work():
    shared = group(share="rollout", ranks=8)
    assert backend_of("auto", policy=shared, rollout=group(ranks=8)) == "ipc"
    fewer = group(share="rollout", ranks=4)
    assert backend_of("auto", policy=fewer, rollout=group(ranks=4)) == "ipc"
    assert backend_of("auto", policy=group(ranks=4), rollout=group(ranks=8)) == "nccl"
    apart = {"policy": group(gpus_per_rank=0), "rollout": group()}
    assert backend_of("object_store", **apart) == "object_store"
