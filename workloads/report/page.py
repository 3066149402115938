"""The report as one HTML file: no script, nothing from elsewhere, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from importlib.resources import files
from typing import Final

from workloads.report.charts import (
    cpu_of,
    latency_charts,
    latency_of,
    operations_of,
    rates_chart,
    ratio_text,
    throughput_chart,
)
from workloads.report.measured import Document, Section, Spread
from workloads.report.panels import count_text, duration_text, size_text, time_text
from workloads.report.svg import escape
from workloads.report.traffic_chart import totals, traffic_chart

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(document: Document) -> str:
    """The file's text."""
    style = files("workloads.report").joinpath("style.css").read_text()
    body = "".join(_body(document))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _body(document: Document) -> Iterable[str]:
    yield f'<header><p class="over">keigo bench</p><h1>{escape(document.title)}</h1>'
    machine = dict(document.machine)
    meta = [document.created, *(machine[name] for name in ("CPU", "kernel") if name in machine)]
    yield f'<p class="meta">{escape(" · ".join(meta))}</p></header>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in document.notes)
    if len(document.sections) > 1:
        yield _overview(document)
    for section in document.sections:
        yield from _section(section, [name for name, _ in document.tiers])
    yield from _appendix(document)
    yield "<footer>Written by keigo bench. The JSON beside this file has every figure.</footer>\n"


def _overview(document: Document) -> str:
    """Ratios to the base, a row per setup, a column per workload; nothing where there is no base."""
    if any(section.base is None for section in document.sections):
        return ""
    names = list(dict.fromkeys(setup.name for section in document.sections for setup in section.setups))
    rows = []
    for name in names:
        cells = [_ratio_cell(section, name) for section in document.sections]
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(section.name)}</th>" for section in document.sections)
    base = escape(document.sections[0].base or "")
    return (
        f'<h2>Operations per second, as multiples of {base}</h2><div class="scroll wide"><table>'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
        '<p class="about">Medians of the ratios within each repetition, and least and most. In colour where '
        "all repetitions agree on which is faster.</p>"
    )


def _ratio_cell(section: Section, name: str) -> str:
    rate, ratio = section.rate(name), section.ratio(name)
    if rate is None:
        return '<td class="same">did not run</td>'
    if name == section.base:
        return f'<td class="same">{count_text(rate.median)}/s</td>'
    if ratio is None:
        return f'<td class="same">{count_text(rate.median)}/s</td>'
    return f'<td class="{verdict(ratio)}">{ratio_text(ratio)}</td>'


def verdict(ratio: Spread) -> str:
    """`better` or `worse` where all repetitions agree, of which there must be two; else `same`."""
    if ratio.count > 1 and ratio.least > 1:
        return "better"
    return "worse" if ratio.count > 1 and ratio.most < 1 else "same"


def _section(section: Section, tiers: Sequence[str]) -> Iterable[str]:
    yield f'<h2>{escape(section.name)}</h2><p class="about">{escape(section.about)}</p>'
    if len(section.setups) > 1:
        yield rates_chart(section)
    for setup in section.setups:
        if setup.unable is not None:
            kind = "note failed" if setup.failed else "note"
            yield f'<p class="{kind}"><b>{escape(setup.name)}</b>: {escape(setup.unable)}</p>'
    if not section.done:
        return
    yield _figures(section)
    if any(run.throughput for setup in section.done for run in setup.runs):
        yield "<h3>Throughput over time</h3>"
        if any(len(setup.runs) > 1 for setup in section.done):
            yield '<p class="about">Operations per second; the median run of a setup in full, its other runs thin.</p>'
        yield throughput_chart(section)
    yield "<h3>Latency</h3>"
    yield f'<p class="about">{_latency_note(section)}</p>'
    yield latency_charts(section)
    yield _latencies(section)
    drawn = traffic_chart(section, tiers)
    if drawn:
        yield "<h3>Where the bytes went</h3>"
        which = ", in the median run of each setup" if len(section.done) > 1 else ""
        counted = next(run.traffic.counted_by for setup in section.done for run in setup.runs if run.traffic)
        yield f'<p class="about">As {escape(counted)} counted them{which}.</p>'
        yield drawn
        yield _totals(section, tiers)


def _latency_note(section: Section) -> str:
    runs = [run for setup in section.done for run in setup.runs]
    since = (
        "from the moment when an operation was due, so that a stall counts for all that had to wait"
        if any(run.corrected for run in runs)
        else "from the beginning of an operation to its end (closed loop: while one waits, the next are not begun)"
    )
    pooled = " All repetitions together." if any(len(setup.runs) > 1 for setup in section.done) else ""
    return f"Latency that this share of the operations did not exceed, {since}.{pooled} Both axes are logarithmic."


def _figures(section: Section) -> str:
    """A row per setup that ran: figures that no chart shows."""
    rows = []
    for setup in section.done:
        rate = section.rate(setup.name)
        load = setup.median_of(lambda run: run.load_seconds)
        cpu = [setup.median_of(partial(cpu_of, whose=whose)) for whose in ("database", "keigo")]
        rows.append(
            [
                setup.name,
                "" if rate is None else f"{rate.median:,.0f}",
                "" if rate is None or rate.count < 2 else f"{rate.least:,.0f} \N{EN DASH} {rate.most:,.0f}",
                str(len(setup.runs)),
                "" if load is None else duration_text(load),
                *("" if busy is None else f"{busy:.2f}" for busy in cpu),
            ]
        )
    head = ["", "operations/s", "least \N{EN DASH} most", "runs", "load took", "CPUs: database", "CPUs: Keigo"]
    return _table(head, rows)


def _latencies(section: Section) -> str:
    """A row per setup that ran."""
    operations = operations_of(section)
    head = ["", *(f"{name} {what}" for name in operations for what in ("mean", "p50", "p99", "p99.9"))]
    rows = []
    for setup in section.done:
        cells = [setup.name]
        for name in operations:
            latency = latency_of(setup, name)
            figures = [None] * 4 if latency is None else [latency.mean, *(latency.at(at) for at in (50.0, 99.0, 99.9))]
            cells += ["" if figure is None else time_text(figure) for figure in figures]
        rows.append(cells)
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns without any figure are left out."""
    used = [at for at in range(len(head)) if at == 0 or any(row[at] for row in rows)]
    heads = "".join(f"<th>{escape(head[at])}</th>" for at in used)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(row[at])}</td>' for at in used)}</tr>" for row in rows)
    return f'<div class="scroll wide"><table><tr>{heads}</tr>{lines}</table></div>'


def _totals(section: Section, tiers: Sequence[str]) -> str:
    """What each tier wrote and read in the median run."""
    rows = []
    what = "load and run" if any(setup.median_run().run_began > 0 for setup in section.done) else "run"
    for setup in section.done:
        found = totals(setup.median_run())
        if found:
            sums = [value for tier in tiers for value in found.get(tier, (0, 0))]
            rows.append([setup.name, *map(size_text, sums)])
    return _table([what, *(f"{tier} {way}" for tier in tiers for way in ("written", "read"))], rows)


def _appendix(document: Document) -> Iterable[str]:
    first = document.sections[0].setups if document.sections else ()
    if len(first) > 1:
        yield "<h2>Setups</h2>" + _words((setup.name, setup.about) for setup in first)
    if document.tiers:
        yield "<h2>Hierarchy</h2>" + _words(document.tiers)
    if document.configuration:
        yield "<h2>Configuration</h2>" + _words(document.configuration)
    if document.machine:
        yield "<h2>Machine</h2>" + _words(document.machine)
    if document.plan:
        yield f"<details><summary>The plan, as it was</summary><pre>{escape(document.plan)}</pre></details>"


def _words(rows: Iterable[tuple[str, str]]) -> str:
    written = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<div class="scroll words"><table>{written}</table></div>'
