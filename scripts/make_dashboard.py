"""Write monitoring/grafana.json, the Grafana dashboard of Keigo's metrics.

.venv/bin/python scripts/make_dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).parent.parent / "monitoring" / "grafana.json"
SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
ONE: Final = '{volume="$volume"}'
HIT_RATIO: Final = f"rate(keigo_cache_hits_total{ONE}[1m]) / (rate(keigo_cache_hits_total{ONE}[1m]) + rate(keigo_cache_misses_total{ONE}[1m]))"  # noqa: E501  one expression

# title, unit, [(expression, legend)], stacked
PANELS: Final[list[tuple[str, str, list[tuple[str, str]], bool]]] = [
    ("Used, by tier", "percentunit", [(f"keigo_tier_used_bytes{ONE} / keigo_tier_capacity_bytes{ONE}", "{{tier}}")],
     False),
    ("Levels, by tier", "bytes", [(f"sum by (level, tier) (keigo_level_bytes{ONE})", "L{{level}} on {{tier}}")], True),
    ("Read", "Bps", [(f"rate(keigo_tier_read_bytes_total{ONE}[1m])", "{{tier}}")], False),
    ("Written", "Bps", [(f"rate(keigo_tier_written_bytes_total{ONE}[1m])", "{{tier}}")], False),
    ("Reads under way", "short", [(f"keigo_tier_reads_under_way{ONE}", "{{tier}}")], False),
    ("Writes under way", "short", [(f"keigo_tier_writes_under_way{ONE}", "{{tier}}")], False),
    ("Time of a read", "s", [(f"keigo_tier_reads_under_way{ONE} / keigo_tier_reads_per_second{ONE}", "{{tier}}")],
     False),
    ("Time of a write", "s", [(f"keigo_tier_writes_under_way{ONE} / keigo_tier_writes_per_second{ONE}", "{{tier}}")],
     False),
    ("Writers wait", "short", [(f"keigo_writers_stalled{ONE}", "stalled"), (f"keigo_level0_pressure{ONE}", "level 0")],
     False),
    ("Migrations", "short", [(f"keigo_migrations_waiting{ONE}", "waiting"),
                             (f"rate(keigo_migrations_total{ONE}[5m]) * 60", "{{outcome}} a minute")], False),
    ("Cache: hits", "percentunit", [(HIT_RATIO, "of reads")], False),
    ("Cache: device time saved", "s", [(f"rate(keigo_cache_saved_seconds_total{ONE}[1m])", "a second")], False),
]  # fmt: skip


def panel(number: int, title: str, unit: str, queries: list[tuple[str, str]], stacked: bool) -> dict[str, Any]:
    """A time series, two to a row."""
    custom = {"fillOpacity": 20 if stacked else 0, "stacking": {"mode": "normal" if stacked else "none"}}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": SOURCE,
        "gridPos": {"h": 7, "w": 12, "x": 12 * (number % 2), "y": 7 * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for at, (expression, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole, as Grafana imports it."""
    volumes = "label_values(keigo_info, volume)"
    return {
        "title": "Keigo",
        "uid": "keigo",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {"name": "volume", "type": "query", "datasource": SOURCE, "query": volumes, "refresh": 2},
            ]
        },
        "panels": [panel(number, *each) for number, each in enumerate(PANELS)],
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n")
