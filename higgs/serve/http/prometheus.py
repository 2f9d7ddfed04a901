"""What a server counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from higgs.serve.http.async_engine import AsyncEngine

FIRST_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
WHOLE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class EngineCollector:
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, front: AsyncEngine):
        self.front = front

    def collect(self) -> Iterator[Metric]:
        scheduler, voices = self.front.scheduler, self.front.engine.voices
        gauges = {
            "higgs_rows": ("Rows in which requests run.", scheduler.decoder.rows),
            "higgs_running": ("Requests that have a row.", len(scheduler.running)),
            "higgs_waiting": ("Requests that wait for a row.", len(scheduler.waiting)),
            "higgs_open": ("Requests from their first moment to their last.", self.front.open),
            "higgs_voice_cache_bytes": ("Size of the kept voices.", voices.bytes),
        }
        for name, (what, value) in gauges.items():
            yield GaugeMetricFamily(name, what, value=value)
        stops = CounterMetricFamily("higgs_stops", "Takes by why they ended.", labels=["reason"])
        for reason, count in sorted(scheduler.stops.items()):
            stops.add_metric([reason], count)
        yield stops
        asked = CounterMetricFamily("higgs_voice_cache", "Look-ups of voices.", labels=["result"])
        asked.add_metric(["hit"], voices.hits)
        asked.add_metric(["miss"], voices.misses)
        yield asked


class Metrics:
    """A registry of one server's numbers."""

    def __init__(self, front: AsyncEngine):
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(front))
        known = {"registry": self.registry}
        self.requests = Counter(
            "higgs_requests", "Speech requests by outcome.", ["outcome"], **known
        )
        self.audio_seconds = Counter("higgs_audio_seconds", "Seconds of audio made.", **known)
        self.first_packet = Histogram(
            "higgs_first_packet_seconds",
            "From a request to its first audio.",
            buckets=FIRST_BUCKETS,
            **known,
        )
        self.whole = Histogram(
            "higgs_request_seconds",
            "From a request to its last audio.",
            buckets=WHOLE_BUCKETS,
            **known,
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
