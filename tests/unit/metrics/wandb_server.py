"""A W&B server of a test's own: what `wandb sync` reads from a run's files arrives here."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Received:
    """What was uploaded.

    Attributes:
        configs: The configuration with each change, by the run's id.
        history: Rows of logged values, in order.
        files: Other files' contents, by their path.
    """

    configs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The last one, without W&B's own entries."""
        values = self.configs[-1][1]
        return {key: entry["value"] for key, entry in values.items() if key != "_wandb"}

    def tables(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Content of every table by its name and step."""
        return {
            (name, row["step"]): json.loads(self.files[value["path"]])
            for row in self.history
            for name, value in row.items()
            if isinstance(value, dict) and value.get("_type") == "table-file"
        }


@contextmanager
def server() -> Iterator[tuple[str, Received]]:
    """Its address, and what it has received so far."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: dict[str, Any] = {}
            if self.path.endswith("/graphql"):
                answer = {"data": _answer(json.loads(body), received, url)}
            elif self.path.endswith("/file_stream"):
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
                received.history += [json.loads(line) for line in lines.get("content", ())]
            elif self.path.startswith("/upload/"):
                received.files[self.path.removeprefix("/upload/")] = body
            self._send(json.dumps(answer).encode())

        do_PUT = do_GET = do_POST

        def _send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield url, received
    http.shutdown()
    thread.join(timeout=10)


def _answer(request: dict[str, Any], received: Received, url: str) -> dict[str, Any]:
    """As much of W&B's schema as uploading a run asks for."""
    variables = request.get("variables") or {}
    if "UpsertBucket" in request["query"] and variables.get("config"):
        received.configs.append((variables["name"], json.loads(variables["config"])))
    project = {"id": "p", "name": "rlhf-ray", "entity": {"id": "e", "name": "me"}}
    run = {"id": "r", "name": variables.get("name", ""), "displayName": "run", "project": project}
    artifact = {
        "id": "a",
        "state": "COMMITTED",
        "artifactSequence": {"latestArtifact": {"id": "a", "versionIndex": 0}},
    }
    files = [{"name": f, "uploadUrl": f"{url}/upload/{f}"} for f in variables.get("files", ())]
    return {
        "serverInfo": {"features": []},
        "upsertBucket": {"bucket": run, "inserted": True},
        "createArtifact": {"artifact": artifact},
        "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files},
        "model": {"bucket": None},
    }


def synced(run_dir: Path) -> Received:
    """Everything that W&B itself finds in the offline runs below a folder."""
    with server() as (url, received):
        environment = os.environ | {
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": "a" * 40,
            "WANDB_ERROR_REPORTING": "false",
        }
        runs = sorted(run_dir.glob("wandb/offline-run-*"))
        wandb = Path(sys.executable).with_name("wandb")
        command = [str(wandb), "sync", "--yes", *map(str, runs)]
        subprocess.run(
            command, env=environment, cwd=run_dir, check=True, capture_output=True, timeout=120
        )
    return received
