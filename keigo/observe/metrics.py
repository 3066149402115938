"""What a volume exports to Prometheus: the daemon's own answers to `status` and `lsm`, as metric families.

Counters are since the mount. Names are part of the interface: the dashboard and the alert rules in `monitoring/` use
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

Ask = Callable[[], Mapping[str, Any]]

# (name, help, key of a tier's part of `status`)
_TIER: Final = (
    ("keigo_tier_capacity_bytes", "Bytes that may be placed on a tier", "capacity"),
    ("keigo_tier_used_bytes", "Bytes of files on a tier", "used"),
    ("keigo_tier_room_bytes", "Bytes that may still be placed on a tier, its reserve taken off", "room"),
    ("keigo_tier_files", "Files on a tier", "files"),
)
_LOAD: Final = (
    ("keigo_tier_reads_under_way", "Mean number of reads under way on a tier's device", "read_k"),
    ("keigo_tier_writes_under_way", "Mean number of writes under way on a tier's device", "write_k"),
    ("keigo_tier_reads_per_second", "Reads of a tier's device per second, lately", "read_rate"),
    ("keigo_tier_writes_per_second", "Writes of a tier's device per second, lately", "write_rate"),
)
_MOVED: Final = (
    ("keigo_tier_read_bytes", "Bytes read from a tier's device", "read_bytes"),
    ("keigo_tier_written_bytes", "Bytes written to a tier's device", "written_bytes"),
)
_CACHE_GAUGES: Final = (
    ("keigo_cache_capacity_bytes", "Bytes that the read cache may take", "capacity"),
    ("keigo_cache_used_bytes", "Bytes that the read cache takes", "used"),
    ("keigo_cache_waiting_chunks", "Chunks that are to be copied into the cache", "waiting"),
    ("keigo_cache_unverified_chunks", "Chunks that are to be checked before they are used", "unverified"),
)
_CACHE_COUNTERS: Final = (
    ("keigo_cache_hits", "Reads served from the cache as a whole", "hits"),
    ("keigo_cache_hit_bytes", "Bytes served from the cache", "hit_bytes"),
    ("keigo_cache_misses", "Reads of cacheable files served at home, in whole or in part", "misses"),
    ("keigo_cache_miss_bytes", "Bytes of cacheable files served at home", "miss_bytes"),
    ("keigo_cache_saved_seconds", "Device time that hits have saved", "seconds_saved"),
    ("keigo_cache_filled_bytes", "Bytes copied into the cache", "filled_bytes"),
    ("keigo_cache_evicted_chunks", "Chunks that made room for others", "evicted"),
    ("keigo_cache_damaged_chunks", "Chunks that were not what they had been", "damaged"),
    ("keigo_cache_errors", "Failures of the cache's device", "errors"),
)


def families(status: Mapping[str, Any], trees: Mapping[str, Any], began: float) -> Iterable[Metric]:
    """All metrics of a volume. `began`: when the daemon was started, in seconds since the epoch."""
    volume = str(status["volume"])
    info = InfoMetricFamily("keigo", "The volume and its daemon", labels=["volume"])
    told = {key: str(status[key]) for key in ("driver", "policy", "mount")}
    info.add_metric([volume], told)
    yield info
    yield _one("keigo_start_time_seconds", "When the daemon was started", volume, began)
    yield _one("keigo_open_files", "Files that are open through the mount", volume, status["open_files"])
    text = "Readers that keep a closed SST or blob file on its tier"
    yield _one("keigo_passthrough_readers", text, volume, status["passthrough_readers"])
    yield _one("keigo_draining", "1 while the volume is drained", volume, int(status["draining"]))
    pressure = status["placement"]["pressure"]
    yield _one("keigo_writers_stalled", "1 while writers of a database wait", volume, int(pressure["stalled"]))
    text = "Level 0 of the worst database, as a share of what slows writers down"
    yield _one("keigo_level0_pressure", text, volume, pressure["level0"])
    yield from _tiers(volume, status["tiers"])
    yield from _migrations(volume, status["migrations"])
    if status["cache"]:
        yield from _cache(volume, status["cache"])
    yield _levels(volume, trees)


def _one(name: str, text: str, volume: str, value: float) -> Metric:
    found = GaugeMetricFamily(name, text, labels=["volume"])
    found.add_metric([volume], value)
    return found


def _tiers(volume: str, tiers: Sequence[Mapping[str, Any]]) -> Iterable[Metric]:
    for names, part in ((_TIER, None), (_LOAD, "load")):
        for name, text, key in names:
            gauge = GaugeMetricFamily(name, text, labels=["volume", "tier"])
            for tier in tiers:
                value = tier[key] if part is None else tier[part][key]
                if value is not None:
                    gauge.add_metric([volume, tier["name"]], value)
            yield gauge
    ill = GaugeMetricFamily("keigo_tier_degraded", "1 while a tier's device does not work", labels=["volume", "tier"])
    errors = CounterMetricFamily("keigo_tier_errors", "Operations that failed on a tier", labels=["volume", "tier"])
    for tier in tiers:
        ill.add_metric([volume, tier["name"]], int(tier["degraded_for"] is not None))
        errors.add_metric([volume, tier["name"]], tier["errors"])
    yield ill
    yield errors
    for name, text, key in _MOVED:
        counter = CounterMetricFamily(name, text, labels=["volume", "tier"])
        for tier in tiers:
            counter.add_metric([volume, tier["name"]], tier["load"][key])
        yield counter


def _migrations(volume: str, moves: Mapping[str, Any]) -> Iterable[Metric]:
    ended = CounterMetricFamily("keigo_migrations", "Migrations by how they ended", labels=["volume", "outcome"])
    for outcome in ("done", "failed", "cancelled"):
        ended.add_metric([volume, outcome], moves[outcome])
    yield ended
    size = CounterMetricFamily("keigo_migrated_bytes", "Bytes of files that have migrated", labels=["volume"])
    size.add_metric([volume], moves["bytes"])
    yield size
    yield _one("keigo_migrations_waiting", "Files that are to migrate", volume, moves["waiting"])
    yield _one(
        "keigo_migrations_paused", "1 while the mover waits for others", volume, int(moves["paused"] is not None)
    )


def _cache(volume: str, cache: Mapping[str, Any]) -> Iterable[Metric]:
    for name, text, key in _CACHE_GAUGES:
        yield _one(name, text, volume, cache[key])
    for name, text, key in _CACHE_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["volume"])
        counter.add_metric([volume], cache[key])
        yield counter


def _levels(volume: str, trees: Mapping[str, Any]) -> Metric:
    labels = ["volume", "database", "family", "level", "tier"]
    found = GaugeMetricFamily("keigo_level_bytes", "Bytes of a level of a database on a tier", labels=labels)
    for database in trees["databases"]:
        for family in database["families"]:
            for level in family["levels"]:
                name = "blobs" if level["role"] == "blob" else "?" if level["level"] is None else str(level["level"])
                for tier, size in level["tiers"].items():
                    found.add_metric([volume, database["directory"], family["name"], name, tier], size)
    return found


class _Volume(Collector):
    def __init__(self, status: Ask, trees: Ask, began: float) -> None:
        self._status, self._trees, self._began = status, trees, began

    def collect(self) -> Iterable[Metric]:
        """Ask anew at each scrape."""
        return families(self._status(), self._trees(), self._began)

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked when it is registered."""
        return []


def serve(address: str, port: int, status: Ask, trees: Ask, began: float) -> Callable[[], None]:
    """Answer scrapes at http://ADDRESS:PORT/metrics, in threads; returns what ends that. Raises OSError."""
    registry = CollectorRegistry()
    registry.register(_Volume(status, trees, began))
    server, thread = start_http_server(port, address, registry)

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
