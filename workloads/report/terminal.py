"""A report in the terminal: a table per workload."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from workloads.report.charts import cpu_of, latency_of, operations_of, ratio_text
from workloads.report.measured import Document, Section, Setup
from workloads.report.page import verdict
from workloads.report.panels import size_text, time_text
from workloads.report.traffic_chart import totals

_STYLES = {"better": "green", "worse": "red", "same": ""}


def tables(document: Document) -> RenderableType:
    """The figures of all workloads."""
    parts: list[RenderableType] = [Text(document.title, style="bold")]
    for section in document.sections:
        parts += [Text(), Text.assemble((section.name, "bold"), (f"  {section.about}", "dim"))]
        parts += [_table(section, document)] if section.done else []
        unable = [(setup.name, setup.unable) for setup in section.setups if setup.unable is not None]
        parts += [Text(f"{name} did not run: {why}", style="yellow") for name, why in unable]
    parts += [Text(note, style="yellow") for note in document.notes]
    return Group(*parts)


def _table(section: Section, document: Document) -> Table:
    """A row per setup that ran."""
    operations = operations_of(section)
    tiers = [name for name, _ in document.tiers]
    counted = any(run.traffic for setup in section.done for run in setup.runs)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("setup", no_wrap=True)
    columns = ["operations/s", *([f"to {section.base}"] if section.base else [])]
    columns += [f"{name} {what}" for name in operations for what in ("p50", "p99")]
    columns += [*(["Keigo CPU"] if _keigo(section) else []), *([f"{tier} wrote" for tier in tiers] if counted else [])]
    for name in columns:
        table.add_column(name, justify="right")
    for setup in section.setups:
        if setup.runs:
            table.add_row(*_cells(section, setup, operations, tiers if counted else []))
    return table


def _cells(section: Section, setup: Setup, operations: list[str], tiers: list[str]) -> list[Text]:
    rate, ratio = section.rate(setup.name), section.ratio(setup.name)
    cells = [Text(setup.name), Text("" if rate is None else f"{rate.median:,.0f}")]
    if section.base is not None:
        shown = "base" if setup.name == section.base else "" if ratio is None else ratio_text(ratio)
        cells.append(Text(shown, style="" if ratio is None else _STYLES[verdict(ratio)]))
    for name in operations:
        latency = latency_of(setup, name)
        figures = (None, None) if latency is None else (latency.at(50.0), latency.at(99.0))
        cells += [Text("" if figure is None else time_text(figure)) for figure in figures]
    if _keigo(section):
        cpu = setup.median_of(lambda run: cpu_of(run, "keigo"))
        cells.append(Text("" if cpu is None else f"{cpu:.2f}"))
    moved = totals(setup.median_run())
    cells += [Text(size_text(moved[tier][0]) if tier in moved else "") for tier in tiers]
    return cells


def _keigo(section: Section) -> bool:
    """Whether any setup has a daemon of Keigo's."""
    return any("keigo" in run.cpu for setup in section.done for run in setup.runs)
