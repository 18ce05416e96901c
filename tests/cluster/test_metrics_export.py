"""What Prometheus reads from Ray's agents while a job runs."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from jobs import train

from rlhf_ray.metrics.names import prometheus_name

ROOT = Path(__file__).parents[2]
# Ray's processes report to the agent every 10 s.
LONGEST_WAIT_S = 30.0
SAMPLE = re.compile(r"^(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)
ENGINE_NAMES = {
    "ray_vllm_num_requests_running",
    "ray_vllm_num_requests_waiting",
    "ray_vllm_kv_cache_usage_perc",
    "ray_vllm_generation_tokens_total",
    "ray_vllm_prompt_tokens_total",
    "ray_vllm_time_to_first_token_seconds_bucket",
}


def scrape():
    """Samples of the one node's agent: name, labels, value."""
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    return [
        (match["name"], dict(re.findall(r'(\w+)="([^"]*)"', match["labels"])), match["value"])
        for match in SAMPLE.finditer(text)
    ]


@pytest.fixture(scope="module")
def run(pool, make_config, tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("watched") / "ppo-watched")
    return train(config, pool)


@pytest.fixture(scope="module")
def last_step(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def samples(last_step):
    deadline_s = time.monotonic() + LONGEST_WAIT_S
    while time.monotonic() < deadline_s:
        samples = scrape()
        steps = [
            float(value)
            for name, labels, value in samples
            if name == "ray_rlhf_step" and labels["run"] == "ppo-watched"
        ]
        if steps == [last_step["step"]] and {name for name, _, _ in samples} >= ENGINE_NAMES:
            break
        time.sleep(1.0)
    return samples


def test_every_metric_of_the_last_step_is_there_with_its_value(samples, last_step):
    found = {
        name: float(value)
        for name, labels, value in samples
        if (labels.get("run"), labels.get("kind")) == ("ppo-watched", "ppo")
    }
    expected = {
        f"ray_{prometheus_name(name)}": value
        for name, value in last_step.items()
        if name not in ("time_s", "step")
    }
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
    assert found["ray_rlhf_step"] == last_step["step"]


def test_so_are_the_engines_own(samples):
    assert {name for name, _, _ in samples} >= ENGINE_NAMES
    counters = [value for name, _, value in samples if name == "ray_vllm_generation_tokens_total"]
    assert sum(float(value) for value in counters) > 0


def test_the_dashboard_asks_for_what_is_there(samples):
    """Beside the run's own names, which are checked without a cluster, and those of GPUs."""
    dashboard = (ROOT / "docker/grafana/rlhf-ray.json").read_text()
    asked = {name for name in re.findall(r"\bray_\w+", dashboard) if "rlhf" not in name}
    asked -= {"ray_node_gpus_utilization", "ray_node_gram_used"}
    assert len(asked) > 12
    assert asked <= {name for name, _, _ in samples}


def test_every_role_says_what_it_needed(last_step):
    for role in ("policy", "value", "reference", "reward_worker", "rollout"):
        assert 0.05 < last_step[f"memory/{role}_peak_gb"] < 16
        assert 0 < last_step[f"wait/{role}"] < 60
    assert last_step["engine/running_mean"] > 0
    assert 0 < last_step["engine/kv_cache_share_max"] <= 1
    shares = [value for name, value in last_step.items() if name.startswith("share/")]
    assert len(shares) == 4
    assert 0.5 < sum(shares) <= 1.0
