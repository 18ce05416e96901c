"""The metrics of a run at Ray's agents, where Prometheus finds them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ray.util.metrics import Gauge

from rlhf_ray.metrics.log import Record, Table
from rlhf_ray.metrics.names import meaning_of, prometheus_name

# `kind`, because Prometheus itself gives every series a `job`, that of its scrape.
LABELS = ("run", "kind")
# An agent forgets a gauge that was not set for two of Ray's report intervals, 20 s by default; a
# step may take minutes.
REFRESH_S = 5.0


class RaySink:
    """One gauge a metric, labelled with the run's folder and the kind of job.

    The agent of the driver's node shows them from the first step to the end of the run, with `ray_`
    in front of the name.
    """

    def __init__(self, *, run: str, job: str) -> None:
        """No gauge yet: they come with the first value."""
        self._labels = dict(zip(LABELS, (_ascii(run), job), strict=True))
        self._gauges = {"step": _gauge("step", "the last step that was logged")}
        self._values: Mapping[str, float] = {}
        self._closed = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, name="ray-metrics", daemon=True)
        self._refresher.start()

    def log(self, record: Record) -> None:
        """Set every gauge; one that this step does not have keeps its value."""
        for name in record.metrics.keys() - self._gauges.keys():
            self._gauges[name] = _gauge(name, str(meaning_of(name)))
        self._values = {**self._values, **record.metrics, "step": float(record.step)}
        self._set()

    def table(self, table: Table) -> None:
        """Prometheus keeps numbers only."""

    def close(self, *, failed: bool) -> None:
        """Let the gauges fade."""
        self._closed.set()
        self._refresher.join(timeout=REFRESH_S)

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self._set()

    def _set(self) -> None:
        for name, value in self._values.items():
            self._gauges[name].set(value, tags=self._labels)


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(prometheus_name(name), description=_ascii(description), tag_keys=LABELS)


def _ascii(text: str) -> str:
    """Ray refuses any other character."""
    return text.replace("±", "+-").encode("ascii", "replace").decode("ascii")
