"""The dashboard asks for nothing that nobody exports."""

import json
import re
from pathlib import Path

from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from rlhf_ray.metrics.names import NAMES, prometheus_name

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "docker/grafana/rlhf-ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NAMES_USED = {name for text in EXPRESSIONS for name in re.findall(r"\bray_\w+", text)}
OURS = {f"ray_{prometheus_name(name)}" for name in NAMES} | {"ray_rlhf_step"}
EVALUATED = {f"ray_{prometheus_name('eval/' + name.partition('/')[2])}" for name in NAMES}
# Of Ray's core, which has no list of them in Python; the cluster's tests find them in a scrape.
OF_RAYS_CORE = {"ray_actors", "ray_object_store_used_memory", "ray_object_store_available_memory"}


def test_names_in_prometheus_are_legal_and_distinct():
    assert len({prometheus_name(name) for name in NAMES}) == len(NAMES)
    assert all(re.fullmatch(r"rlhf_[a-zA-Z0-9_]+", prometheus_name(name)) for name in NAMES)


def test_every_name_is_exported():
    of_nodes = {f"ray_{name}" for name in METRICS_GAUGES}
    of_engines = {name for name in NAMES_USED if name.startswith("ray_vllm_")}
    assert of_engines
    assert OURS | EVALUATED | of_nodes | OF_RAYS_CORE | of_engines >= NAMES_USED


def test_every_row_that_was_promised_has_panels():
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == [
        "Reward",
        "KL and agreement",
        "Losses",
        "Throughput",
        "Where the time goes",
        "Engines",
        "Memory",
        "Cluster",
    ]


def test_expressions_are_balanced_and_chosen_by_run():
    for text in EXPRESSIONS:
        assert all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]")), text
        assert ("rlhf" in text) == ("$run" in text), text


def test_panels_do_not_overlap():
    seats = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        seat = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not seat & seats, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        seats |= seat
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_runs_to_choose_from_are_those_that_log():
    [run] = [v for v in DASHBOARD["templating"]["list"] if v["name"] == "run"]
    assert run["query"]["query"] == "label_values(ray_rlhf_step, run)"
