"""Metrics of a real mount, and that what is shipped for Prometheus and Grafana asks for nothing else."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path

import make_dashboard
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from tests.conftest import MakeWorld

ROOT = Path(__file__).parents[2]
CACHE = "cache: {tier: fast, capacity: 4MiB, chunk: 16KiB}\n"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def scrape(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    """Name of a sample -> its labels but the volume's -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(value for key, value in sorted(sample.labels.items()) if key != "volume")
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.mark.parametrize("driver", ["kernel"])
def test_they_say_what_status_says(make_world: MakeWorld) -> None:
    port = free_port()
    world = make_world(extra=f"metrics: {port}\n{CACHE}")
    world.mount()
    (world.directory / "000007.sst").write_bytes(b"x" * 100_000)
    world.wait_closed()
    told, status = scrape(port), world.status()
    for tier in status["tiers"]:
        assert told["keigo_tier_used_bytes"][tier["name"],] == tier["used"]
        assert told["keigo_tier_capacity_bytes"][tier["name"],] == tier["capacity"]
    assert told["keigo_cache_capacity_bytes"][()] == 4 << 20
    assert sum(told["keigo_level_bytes"].values()) == 100_000
    assert told["keigo_migrations_total"] == {("done",): 0, ("failed",): 0, ("cancelled",): 0}
    asked = set(re.findall(r"\bkeigo_\w+", (ROOT / "monitoring" / "grafana.json").read_text()))
    asked |= set(re.findall(r"\bkeigo_\w+", (ROOT / "monitoring" / "alerts.yaml").read_text()))
    assert len(asked) > 15
    assert asked <= told.keys(), asked - told.keys()
    world.umount()
    with pytest.raises(OSError, match="refused"):
        scrape(port)


@pytest.mark.parametrize("driver", ["kernel"])
def test_a_port_that_is_taken_is_a_note(make_world: MakeWorld) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        world = make_world(extra=f"metrics: 127.0.0.1:{port}\n")
        world.mount()
        assert f"metrics: 127.0.0.1:{port}: Address already in use: nobody listens there" in world.log()
        (world.directory / "x").write_bytes(b"x")


def test_the_dashboard_is_what_its_script_makes() -> None:
    assert json.loads((ROOT / "monitoring" / "grafana.json").read_text()) == make_dashboard.dashboard()
    ids = [panel["id"] for panel in make_dashboard.dashboard()["panels"]]
    assert len(ids) == len(set(ids)) == len(make_dashboard.PANELS)


def test_every_alert_is_whole() -> None:
    (group,) = YAML(typ="safe").load((ROOT / "monitoring" / "alerts.yaml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 5
    for rule in group["rules"]:
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
