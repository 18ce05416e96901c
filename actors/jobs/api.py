"""Ray's job API: a deadline for every request, and errors that say what to change."""

from __future__ import annotations

import logging
import os
from typing import Any, NoReturn

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from actors.cluster.ray_token import NO_TOKEN, use_token_at_hand
from actors.cluster.reachable import check_reachable
from rlhf_ray.errors import ConfigError, RunError

for _class in JobSubmissionClient.__mro__[:-1]:  # each logs uploads and connections
    logging.getLogger(_class.__module__).setLevel(logging.WARNING)

REQUEST_S = 15.0
# The parts of a package are small, but the way may be long.
UPLOAD_S = 600.0


class JobsApi(JobSubmissionClient):
    """Ray's client; a server that falls silent is an error and not a wait without end."""

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
        deadline_s = UPLOAD_S if method == "PUT" else REQUEST_S
        try:
            return super()._do_request(method, endpoint, timeout=deadline_s, **arguments)
        except requests.exceptions.ConnectionError as error:
            if self._server_ray_version is None:  # Ray's own check of a new connection asks
                raise
            raise RunError(f"{self._address} does not answer any more") from error
        except requests.exceptions.RequestException as error:
            raise RunError(f"{method} {self._address}{endpoint}: {error}") from error

    def _raise_error(self, response: requests.Response) -> NoReturn:
        text = " ".join(response.text.split())[-300:]
        raise RunError(f"{response.url}: status {response.status_code}: {text}")

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return self._server_ray_version or "unknown"

    def info(self, job_id: str) -> Any:
        """What Ray knows of a job; None where there is no such job.

        Raises:
            RunError: The cluster does not answer.
        """
        response = self._do_request("GET", f"/api/jobs/{job_id}")
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            self._raise_error(response)
        return JobDetails(**response.json())

    def put_bytes(self, name: str, content: bytes) -> None:
        """Leave bytes in the head's memory, for ten minutes unless somebody fetches them before.

        Raises:
            RunError: The cluster does not take them.
        """
        self._package_exists(f"gcs://{name}")  # asking for it is what sets the ten minutes
        response = self._do_request("PUT", f"/api/packages/gcs/{name}", data=content)
        if response.status_code != 200:
            raise RunError(f"{self._address} does not take the job: {response.text[-300:]}")


def open_api(address: str) -> JobsApi:
    """The job API of the cluster at an address; shows this machine's token where it is asked for.

    Args:
        address: Of the dashboard, `http://HEAD:8265`, or of the head, `HEAD:6379`.

    Raises:
        ConfigError: Nobody listens there, something else does, or it asks for another token.
    """
    if "://" not in address:
        check_reachable(address)
    elif not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address must be the dashboard's, http://HEAD:8265, got {address!r}")
    # Ray puts these before what it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return _open(address)
    except AuthenticationError:
        if not use_token_at_hand():
            raise ConfigError(f"the cluster at {address} does not let us in: {NO_TOKEN}") from None
    try:
        return _open(address)
    except AuthenticationError:
        raise ConfigError(
            f"the cluster at {address} does not know the token of this machine: {NO_TOKEN}"
        ) from None


def _open(address: str) -> JobsApi:
    try:
        return JobsApi(address)
    except AuthenticationError:
        raise
    except ConnectionError as error:
        raise ConfigError(f"nobody listens at {address}") from error
    # What Ray makes of an answer that is none of its own.
    except (RunError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"what answers at {address} is not Ray's dashboard ({type(error).__name__})"
        ) from error


def check_version(api: JobsApi) -> None:
    """Refuse a cluster whose Ray is another than ours.

    Raises:
        ConfigError: It is.
    """
    if api.ray_version != ray.__version__:
        raise ConfigError(
            f"the cluster runs Ray {api.ray_version}, and this is Ray {ray.__version__}: install "
            "the same one"
        )
