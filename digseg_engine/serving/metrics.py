"""What Prometheus reads: requests, how long they took, the queue, the pictures that are kept."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Of one server; the registry is its own, so that several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "digseg_requests", "Requests answered", ("method", "path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "digseg_request_seconds", "From the request's head to the end of the answer", ("path",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.stages = Counter(
            "digseg_stage_seconds", "Seconds of the engine by stage", ("stage",), registry=self.registry
        )
        self.pictures = Counter("digseg_pictures", "Pictures encoded", registry=self.registry)
        self.prompts = Counter("digseg_prompts", "Prompts answered", registry=self.registry)
        self.gone = Counter("digseg_gone", "Requests whose client had gone before its answer", registry=self.registry)
        self.queue = Gauge("digseg_queue", "Requests that are worked on or wait for the model", registry=self.registry)
        self.kept = Gauge("digseg_encodings", "Encoded pictures that are kept", registry=self.registry)
        self.kept_bytes = Gauge("digseg_encodings_bytes", "Bytes of the encoded pictures kept", registry=self.registry)

    def spent(self, seconds: dict[str, float]) -> None:
        """Add what a result says about its stages."""
        for stage, value in seconds.items():
            self.stages.labels(stage).inc(value)
