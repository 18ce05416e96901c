"""The metrics of a run at Ray's agents, where Prometheus finds them."""

from __future__ import annotations

from ray.util.metrics import Gauge

from rlhf_ray.metrics.log import Record, Table
from rlhf_ray.metrics.names import meaning_of, prometheus_name

LABELS = ("run", "job")


class RaySink:
    """One gauge a metric, labelled with the run's folder and the job.

    Ray exports them from the driver's node every few seconds for as long as the driver lives, with
    `ray_` in front of the name.
    """

    def __init__(self, *, run: str, job: str) -> None:
        """No gauge yet: they come with the first value."""
        self._labels = dict(zip(LABELS, (run, job), strict=True))
        self._gauges: dict[str, Gauge] = {}
        self._step = _gauge("step", "the last step that was logged")

    def log(self, record: Record) -> None:
        """Set every gauge."""
        self._step.set(record.step, tags=self._labels)
        for name, value in record.metrics.items():
            if name not in self._gauges:
                self._gauges[name] = _gauge(name, str(meaning_of(name)))
            self._gauges[name].set(value, tags=self._labels)

    def table(self, table: Table) -> None:
        """Prometheus keeps numbers only."""

    def close(self, *, failed: bool) -> None:
        """Nothing is held back."""


def _gauge(name: str, description: str) -> Gauge:
    return Gauge(prometheus_name(name), description=description, tag_keys=LABELS)
