"""What all metrics share: gauges of several processes, totals that somebody else keeps, and the text that is served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

__all__ = ["Differences", "gauge", "scrape_all", "scrape_of", "set_state"]


def scrape_all(accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of all metrics of this process.

    Args:
        accept: What the request accepts, as its header says.
    """
    return scrape_of(REGISTRY, accept)


def scrape_of(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of all metrics of a registry."""
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


class Differences:
    """What has come to totals that somebody else keeps."""

    def __init__(self) -> None:
        self._seen: dict[object, int] = {}

    def new(self, key: object, total: int) -> int:
        """Return how much was added to this total since the last time."""
        before = self._seen.get(key, 0)
        self._seen[key] = total
        return max(0, total - before)


def gauge(
    name: str,
    words: str,
    labels: Iterable[str],
    registry: CollectorRegistry,
    *,
    mode: Any = "livesum",
) -> Gauge:
    """Return a gauge; of several processes those that live count."""
    return Gauge(name, words, labels, registry=registry, multiprocess_mode=mode)


def set_state(metric: Gauge, labels: tuple[str, ...], present: str, states: Iterable[str]) -> None:
    """Set the one of some states that holds to 1, and the others to 0."""
    for state in states:
        metric.labels(*labels, state).set(state == present)
