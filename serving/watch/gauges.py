"""What the watch has found as Prometheus metrics; a Grafana dashboard of them is in deploy/grafana."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from serving.reports.store import Store
from serving.watch.overview import watch

if TYPE_CHECKING:
    from prometheus_client import Metric

    from serving.contract.watching import SiteWatch


class Watching:
    """Reads what the watch has found each time the metrics are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> "Iterator[Metric]":
        """Gauges; none where the store cannot be read."""
        try:
            sites = watch(self._store).sites
        except SQLAlchemyError:
            return
        yield from _drift(sites)
        yield from _in_use(sites)


def _drift(sites: "list[SiteWatch]") -> "Iterator[Metric]":
    from prometheus_client.core import GaugeMetricFamily

    labels = ["site", "measure"]
    effect = GaugeMetricFamily("wbc_drift_effect", "Share of the cells that lie elsewhere than usual", labels=labels)
    training = GaugeMetricFamily("wbc_drift_from_training", "The same from what the model was made with", labels=labels)
    alarm = GaugeMetricFamily("wbc_drift_alarm", "1 where a measure drifts", labels=labels)
    cells = GaugeMetricFamily("wbc_watched_cells", "Cells of the day that was judged last", labels=["site"])
    judged = GaugeMetricFamily("wbc_watched_day_timestamp_seconds", "The day that was judged last", labels=["site"])
    for site in sites:
        for one in site.measures:
            of = [site.site, one.measure]
            alarm.add_metric(of, float(one.state == "alarm"))
            for gauge, value in ((effect, one.effect), (training, one.from_training)):
                if value is not None:
                    gauge.add_metric(of, value)
        if site.measures:
            cells.add_metric([site.site], max(one.cells for one in site.measures))
            judged.add_metric([site.site], datetime.fromisoformat(site.day).replace(tzinfo=UTC).timestamp())
    yield from (effect, training, alarm, cells, judged)


def _in_use(sites: "list[SiteWatch]") -> "Iterator[Metric]":
    """Accuracy where the label is empty, else a class's recall."""
    from prometheus_client.core import GaugeMetricFamily

    labels = ["site", "label"]
    share = GaugeMetricFamily("wbc_right_in_use", "Share that was right of cells read blind; by class its recall", labels=labels)
    low = GaugeMetricFamily("wbc_right_in_use_low", "Its lower 99 % limit", labels=labels)
    high = GaugeMetricFamily("wbc_right_in_use_high", "Its upper 99 % limit", labels=labels)
    read = GaugeMetricFamily("wbc_read_in_use", "Cells that were read blind", labels=labels)
    alarm = GaugeMetricFamily("wbc_recall_in_use_alarm", "1 where a recall is under its floor for certain", labels=labels)
    for site in sites:
        for one in site.in_use:
            of = [site.site, one.label or ""]
            for gauge, value in ((low, one.low), (high, one.high), (read, one.cells), (alarm, float(one.alarm))):
                gauge.add_metric(of, value)
            if one.cells:
                share.add_metric(of, one.right / one.cells)
    yield from (share, low, high, read, alarm)
