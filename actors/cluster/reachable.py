"""Whether a Ray cluster answers at an address; known in seconds, where `ray.init` takes minutes."""

from __future__ import annotations

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from actors.cluster.ray_token import NO_TOKEN, use_token_at_hand
from rlhf_ray.errors import ConfigError

TIMEOUT_S = 5.0
_REQUEST = gcs_service_pb2.GetClusterIdRequest  # type: ignore[attr-defined]


def check_reachable(address: str) -> None:
    """Ask the head for its name; shows this machine's token where it is asked for.

    Args:
        address: `host:port` of the head.

    Raises:
        ConfigError: Nobody listens there, something else does, or it asks for another token.
    """
    _, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ConfigError(f"a Ray address is host:port, such as 10.0.0.1:6379, got {address!r}")
    code = _ask(address)
    if code is grpc.StatusCode.UNAUTHENTICATED and use_token_at_hand():
        code = _ask(address)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise ConfigError(f"the cluster at {address} does not let us in: {NO_TOKEN}")
    if code is not grpc.StatusCode.OK:
        raise ConfigError(
            f"no Ray cluster answers at {address} ({code.name.lower()}): nobody listens there, or "
            "something else does"
        )


def _ask(address: str) -> grpc.StatusCode:
    try:
        channel = init_grpc_channel(address)
    except AuthenticationError:  # asked to show a token that is not there
        return grpc.StatusCode.UNAUTHENTICATED
    head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    try:
        head.GetClusterId(_REQUEST(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        channel.close()
    return grpc.StatusCode.OK
