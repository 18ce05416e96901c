"""Compose and KubeRay: every reference inside leads somewhere, every command is one."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import submit
from launch.cli import JOB_CONFIGS
from rlhf_ray.config.tools.load import load_config

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
RAY_JOBS = {path.stem: yaml.safe_load(path.read_text()) for path in DOCKER.glob("kuberay/*.yaml")}
GPUS = {"rayjob-cpu": 0, "rayjob-2x8gpu": 16}


def config_of(words, monkeypatch):
    """What a command `rlhf-ray JOB CONFIG ...` would run."""
    monkeypatch.chdir(ROOT)
    program, job, path, *overrides = words
    assert program == "rlhf-ray"
    file = path.removeprefix("/work/")  # as the image has it
    return load_config(JOB_CONFIGS[job], file, overrides)


@functools.cache
def options_of(command):
    """What `ray COMMAND --help` lists."""
    ray = Path(sys.executable).with_name("ray")
    text = subprocess.run([ray, command, "--help"], capture_output=True, check=True, timeout=120)
    return set(re.findall(r"--[a-z][-a-z]+", text.stdout.decode()))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_connected(name):
    service = SERVICES[name]
    _, _, tag = service["image"].partition(":")
    assert tag not in ("", "latest")
    assert service["healthcheck"]["test"][0] == "CMD"
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    for needed, condition in service.get("depends_on", {}).items():
        assert needed in SERVICES
        assert condition == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_and_volumes_exist(name):
    for mount in SERVICES[name]["volumes"]:
        source = mount.partition(":")[0]
        if source.startswith("./"):
            assert (DOCKER / source).exists(), source
        elif not source.startswith("$"):
            assert source in COMPOSE["volumes"], source


def test_nothing_is_open_to_other_machines():
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_ray_does_nothing_for_whom_has_no_token():
    for name in ("head", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_it_is_a_head_and_two_workers():
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert "--head" in shlex.split(SERVICES["head"]["command"])
    assert "--address=head:6379" in shlex.split(SERVICES["worker"]["command"])


@pytest.mark.parametrize("name", ["head", "worker"])
def test_rays_options_exist(name):
    ray, command, *words = shlex.split(SERVICES[name]["command"])
    assert (ray, command) == ("ray", "start")
    assert {word.partition("=")[0] for word in words} <= options_of("start")


def test_a_node_is_asked_for_its_own_health():
    """The head by Ray's command; a worker by its agent, which answers once it has joined."""
    _, ray, command = SERVICES["head"]["healthcheck"]["test"]
    assert (ray, command) == ("ray", "health-check")
    kind, python, option, code = SERVICES["worker"]["healthcheck"]["test"]
    assert (kind, python, option) == ("CMD", "python", "-c")
    compile(code, "healthcheck", "exec")
    assert "--metrics-export-port=8080" in SERVICES["worker"]["command"]
    assert "http://localhost:8080/metrics" in code


def test_every_kubernetes_cluster_asks_for_a_token():
    for job in RAY_JOBS.values():
        assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_prometheus_reads_the_list_that_ray_keeps():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    [scrape] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    [discovery] = scrape["file_sd_configs"]
    assert discovery["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert "ray:/tmp/ray" in SERVICES["head"]["volumes"]
    assert "ray:/tmp/ray:ro" in SERVICES["prometheus"]["volumes"]


def test_grafana_asks_the_prometheus_that_is_there():
    folder = DOCKER / "grafana/provisioning"
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((folder / "dashboards/rlhf-ray.yaml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    mounts = dict(mount.split(":")[:2] for mount in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/rlhf-ray.json"].startswith(provider["options"]["path"])


@pytest.mark.parametrize("name", GPUS)
def test_a_ray_job_has_what_kuberay_requires(name):
    job = RAY_JOBS[name]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "requirements/cpu.lock").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        parameters = {f"--{key}" for key in group["rayStartParams"]}
        assert parameters <= options_of("start")
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        [container] = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert pod["securityContext"]["runAsNonRoot"]
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", GPUS)
def test_the_job_of_a_ray_job_uses_the_gpus_that_it_asks_for(name, monkeypatch):
    spec = RAY_JOBS[name]["spec"]
    config = config_of(shlex.split(spec["entrypoint"]), monkeypatch)
    assert config.ray.address == "auto"
    assert config.run_dir.startswith("/runs/")
    used = sum(g.ranks * g.gpus_per_rank for g in config.groups.values() if not g.share)
    offered = sum(
        group["replicas"] * int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )
    assert used == offered == GPUS[name]


def test_the_commands_of_the_readme_are_commands(monkeypatch):
    text = (DOCKER / "README.md").read_text()
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    inside = [words for words in lines if "exec" in words]
    assert inside
    for words in inside:
        service = words.index("exec") + 1
        assert words[service] in SERVICES
        config_of(words[service + 1 :], monkeypatch)
    [submitted] = [words for words in lines if words[:2] == ["rlhf-ray", "submit"]]
    given, overrides = submit.parser().parse_known_args(submitted[2:])
    config_of(["rlhf-ray", given.job, given.config, *overrides], monkeypatch)
    files = [word for words in lines for word in words if word.startswith("docker/")]
    assert len(files) > 3
    assert all((ROOT / file).is_file() for file in files)
