"""Telling the dashboard of a run is no part of the run."""

import json
import logging

from ray.exceptions import RpcError

from actors.jobs import submission


def test_a_job_goes_on_where_the_dashboard_cannot_be_told(monkeypatch, caplog):
    async def add(name, metadata):
        raise RpcError("the head is busy")

    monkeypatch.setattr(submission, "_add", add)
    settings = {"metadata": {"job_submission_id": "first"}}
    monkeypatch.setenv(submission._SETTINGS, json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        submission.describe_submission({"run": "first"})
    assert "the head is busy" in caplog.text
