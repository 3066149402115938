"""Advice for people and for programs: what to set, what it is predicted to do, and what other choices would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from keigo.devices.advise import LEVEL0_FILES, LEVEL_COUNT, Advice, Tier, placement
from keigo.devices.lsm_costs import INGEST, levels
from keigo.units import format_size

LOOKUP: Final = ("point lookup: 1 block + p per run above", "Monkey (SIGMOD'17)")
SCAN: Final = ("range scan: a block per run + a stream", "Dostoevsky (SIGMOD'18)")
BOTTLENECK: Final = ("k = X sum n T(k, x), up to full threads", "Little 1961, MQSSD T(k, x)")
CACHE: Final = ("H(cached) / H(all), Zipf", "ours")
SPACE: Final = ("peak bytes of each level, compaction's outputs included", "ours")


def formulas(advice: Advice) -> dict[str, tuple[str, str]]:
    """What each recommendation follows from: formula and source."""
    ingest = INGEST[advice.plan.style]
    return {
        "placement": SPACE,
        "style": ingest,
        "growth": ingest,
        "compaction threads": BOTTLENECK,
        "subcompactions": BOTTLENECK,
        "file size": ("a small request a file", "ours"),
        "read cache": CACHE,
        "lookups": LOOKUP,
        "scans": SCAN,
    }


def rocksdb_options(advice: Advice) -> dict[str, str]:
    """The recommendation in RocksDB's words; what is not named stays as it is."""
    plan = advice.plan
    found = {
        "max_background_jobs": str(plan.threads.jobs),
        "max_subcompactions": str(plan.subcompactions),
        "target_file_size_base": str(plan.file_bytes),
    }
    if plan.style == "universal":
        return {
            "compaction_style": "kCompactionStyleUniversal",
            "level0_file_num_compaction_trigger": str(plan.growth),
            "level0_slowdown_writes_trigger": str(plan.growth + 16),
            "level0_stop_writes_trigger": str(plan.growth + 32),
            **found,
        }
    count = len(levels(advice.tree))
    return {
        "compaction_style": "kCompactionStyleLevel",
        "level_compaction_dynamic_level_bytes": "false",
        "max_bytes_for_level_multiplier": str(plan.growth),
        **({"num_levels": str(count)} if count > LEVEL_COUNT else {}),
        **found,
    }


def facts(advice: Advice, tiers: Sequence[Tier]) -> dict[str, object]:
    """Plain data for JSON: bytes, operations per second, shares between 0 and 1."""
    plan, prediction = advice.plan, advice.prediction
    cache = None
    if plan.cache_tier is not None:
        cache = {"tier": tiers[plan.cache_tier].name, "bytes": plan.cache_bytes, "read_share": advice.cached}
    return {
        "ops_per_second": prediction.rate,
        "bottleneck": prediction.bottleneck,
        "placement": {"levels": placement(plan.places, tiers)},
        "style": plan.style,
        "growth": plan.growth if plan.style == "leveled" else None,
        "level0_trigger": LEVEL0_FILES if plan.style == "leveled" else plan.growth,
        "compaction_threads": plan.compactions,
        "subcompactions": plan.subcompactions,
        "file_bytes": plan.file_bytes,
        "cache": cache,
        "memory_read_share": advice.in_memory,
        "levels": [round(size) for size in levels(advice.tree)],
        "tiers": [
            {
                "tier": tier.name,
                "room_bytes": tier.room,
                "peak_bytes": used,
                "read_busy": prediction.devices[tier.name].read_busy,
                "write_busy": prediction.devices[tier.name].write_busy,
            }
            for tier, used in zip(tiers, advice.used, strict=True)
        ],
        "changes": [
            {
                "what": change.what,
                "choice": change.choice,
                "ops_per_second": change.rate,
                "ratio": change.rate / prediction.rate,
            }
            for change in advice.changes
        ],
        "formulas": {
            name: {"formula": formula, "source": source} for name, (formula, source) in formulas(advice).items()
        },
        "rocksdb_options": rocksdb_options(advice),
    }


def advice_report(advice: Advice, tiers: Sequence[Tier]) -> RenderableType:
    """Headline, recommendations with what else was near, devices, and what to paste."""
    prediction = advice.prediction
    headline = Text.assemble((f"{_rate(prediction.rate)} operations/s predicted", "bold"), f"; {prediction.bottleneck}")
    return Group(
        headline,
        Text(),
        _choices(advice, tiers),
        Text(),
        _devices(advice, tiers),
        Text(),
        Text("devices.yaml:", style="bold"),
        Text(_pasted(advice, tiers)),
        Text(),
        Text("RocksDB:", style="bold"),
        Text("\n".join(f"    {name}={value}" for name, value in rocksdb_options(advice).items())),
    )


def _choices(advice: Advice, tiers: Sequence[Tier]) -> Table:
    plan = advice.plan
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("choice")
    table.add_column("recommended", overflow="fold")
    table.add_column("instead, predicted", overflow="fold")
    table.add_column("formula", overflow="fold")
    shape = plan.style if plan.style == "leveled" else f"universal, merging from {plan.growth} runs"
    rows = [("style", shape)]
    if plan.style == "leveled":
        rows.append(("growth", str(plan.growth)))
    rows += [
        ("placement", "as below"),
        ("compaction threads", str(plan.compactions)),
        ("subcompactions", str(plan.subcompactions)),
        ("file size", format_size(plan.file_bytes)),
        ("read cache", _cache(advice, tiers)),
    ]
    named = formulas(advice)
    for name, value in rows:
        instead = [
            f"{change.choice}: {_percent(change.rate / advice.prediction.rate)}"
            for change in advice.changes
            if change.what == name
        ]
        table.add_row(name, value, ", ".join(instead), named[name][0])
    return table


def _percent(ratio: float) -> str:
    return "the same" if round(abs(ratio - 1), 2) == 0 else f"{ratio - 1:+.0%}"


def _cache(advice: Advice, tiers: Sequence[Tier]) -> str:
    plan = advice.plan
    if plan.cache_tier is None:
        return "none"
    return f"{format_size(plan.cache_bytes)} on {tiers[plan.cache_tier].name}, for {advice.cached:.0%} of reads"


def _devices(advice: Advice, tiers: Sequence[Tier]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tier")
    for name in ("peak", "of", "reads busy", "writes busy"):
        table.add_column(name, justify="right")
    for tier, used in zip(tiers, advice.used, strict=True):
        load = advice.prediction.devices[tier.name]
        table.add_row(
            tier.name,
            format_size(used),
            format_size(tier.room),
            f"{load.read_busy:.0%}",
            f"{load.write_busy:.0%}",
        )
    return table


def _pasted(advice: Advice, tiers: Sequence[Tier]) -> str:
    lines = ["placement:", "  policy: levels", "  levels:"]
    for name, listed in placement(advice.plan.places, tiers).items():
        lines.append(f"    {name}: [{', '.join(map(str, listed))}]")
    return "\n".join(f"    {line}" for line in lines)


def _rate(rate: float) -> str:
    """Three digits: a model knows no more."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate >= 100 else f"{rate:.3g}"
