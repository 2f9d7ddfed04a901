"""Prometheus metrics of the HTTP server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from higgs.serve.engine import Engine

FIRST_AUDIO_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds


class EngineCollector:
    """The engine's own counts, read at each scrape."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        scheduler, cache = self.engine.scheduler, self.engine.cache
        yield GaugeMetricFamily("higgs_slots", "Slots of the batch.", scheduler.decoder.slots)
        yield GaugeMetricFamily("higgs_running", "Requests in a slot.", len(scheduler.running))
        yield GaugeMetricFamily("higgs_waiting", "Requests that wait for a slot.", len(scheduler.waiting))
        yield GaugeMetricFamily("higgs_voice_cache_bytes", "Size of the voice cache.", cache.bytes)
        stops = CounterMetricFamily("higgs_stops", "Sequences by stop reason.", labels=["reason"])
        for reason, count in sorted(scheduler.stops.items()):
            stops.add_metric([reason], count)
        yield stops
        lookups = CounterMetricFamily("higgs_voice_cache", "Voice look-ups.", labels=["result"])
        lookups.add_metric(["hit"], cache.hits)
        lookups.add_metric(["miss"], cache.misses)
        yield lookups


class Metrics:
    """`app` is the ASGI application that answers a scrape, in the text format or as OpenMetrics."""

    def __init__(self, engine: Engine):
        registry = CollectorRegistry()
        registry.register(EngineCollector(engine))
        self.app = make_asgi_app(registry)
        self.open = Gauge("higgs_open", "Speech requests being served.", registry=registry)
        outcomes = "Speech requests: spoken, left (by the client), or the error's code."
        self.requests = Counter("higgs_requests", outcomes, ["outcome"], registry=registry)
        self.audio_seconds = Counter("higgs_audio_seconds", "Seconds of audio generated.", registry=registry)
        name, text = "higgs_first_packet_seconds", "From a request to its first audio."
        self.first_audio = Histogram(name, text, buckets=FIRST_AUDIO_BUCKETS, registry=registry)
        name, text = "higgs_request_seconds", "From a request to its last audio."
        self.whole = Histogram(name, text, buckets=REQUEST_BUCKETS, registry=registry)
