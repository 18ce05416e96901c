"""Addresses where no Ray cluster is: refused at once, whatever is there."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from actors.cluster import reachable
from actors.cluster.reachable import check_reachable
from actors.jobs import api as jobs_api
from actors.jobs.api import open_api
from launch.run import cluster
from rlhf_ray.errors import ConfigError


class Stranger(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def silent():
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return port


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch):
    monkeypatch.setattr(jobs_api, "REQUEST_S", 1.0)
    monkeypatch.setattr(reachable, "TIMEOUT_S", 1.0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # restored after the test
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("there", ["free", "stranger", "silent"])
def test_a_dashboard_that_is_none(there, request):
    said = "nobody listens at" if there == "free" else "is not Ray's dashboard"
    started_s = time.monotonic()
    with pytest.raises(ConfigError, match=said):
        open_api(f"http://127.0.0.1:{request.getfixturevalue(there)}")
    assert time.monotonic() - started_s < 5


@pytest.mark.parametrize("there", ["free", "stranger", "silent"])
def test_a_head_that_is_none(there, request):
    started_s = time.monotonic()
    with pytest.raises(ConfigError, match="no Ray cluster answers at"):
        check_reachable(f"127.0.0.1:{request.getfixturevalue(there)}")
    assert time.monotonic() - started_s < 5


def test_what_ray_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0.0\n")

    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"Version mismatch: .* with: Ray: 2\.0\.0$"):
        cluster.join("auto")


def test_another_version_of_ray_is_refused():
    class Api:
        ray_version = "2.0.0"

    with pytest.raises(ConfigError, match=r"the cluster runs Ray 2\.0\.0, and this is Ray"):
        jobs_api.check_version(Api())
