"""The report: its figures, its drawings, and the page as a real browser shows it."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from tests.conftest import World
from workloads.compare.summary import document_of_result
from workloads.compare.tools import environment
from workloads.report import charts, svg
from workloads.report.measured import Document, Latency, Measured, Section, Setup, Spread, Traffic, pooled
from workloads.report.page import page, verdict
from workloads.report.panels import count_text, size_text, size_ticks, time_text
from workloads.report.terminal import tables
from workloads.report.traffic_chart import traffic_chart
from workloads.runner.result import decode

CHROMIUM = "chromium-headless-shell"  # scripts/setup test installs it
WIDTH = 1180


def latency(values: list[float]) -> Latency:
    found, counts = np.unique(np.array(values), return_counts=True)
    return Latency(found, counts.astype(np.int64), float(sum(values)))


def run(rate: float, share: float = 1.0) -> Measured:
    """20 seconds at a rate, of whose bytes a share goes to the fast tier."""
    random = np.random.default_rng(int(rate))
    ends = tuple(float(second + 1) for second in range(20))
    moved = {
        "fast": tuple(int(share * 2e7) for _ in range(30)),
        "slow": tuple(int((1 - share) * 2e7) for _ in range(30)),
    }
    return Measured(
        operations=int(rate * 20),
        seconds=20.0,
        throughput=tuple(float(rate * value) for value in random.uniform(0.9, 1.1, 20)),
        ends=ends,
        latencies={name: latency(list(random.lognormal(5, 1, 2000).round())) for name in ("read", "update")},
        load_seconds=9.5,
        cpu={"database": 12.0, "keigo": 3.0},
        traffic=Traffic("the block devices", tuple(float(at + 1) for at in range(30)), moved, moved),
        run_began=10.0,
    )


@pytest.fixture(scope="module")
def document() -> Document:
    sections = []
    for name in ("ycsb-a", "ycsb-c"):
        rates = {"all-slow": [1000, 1100, 900], "keigo": [2500, 2300, 2600], "mergerfs": [1050, 1000, 1020]}
        setups = [Setup(key, f"what {key} is", tuple(run(rate) for rate in found)) for key, found in rates.items()]
        setups.append(Setup("cached <b>&", "cannot", (), "this version has no <cache> & says so"))
        repetitions = {key: dict(enumerate(map(float, found))) for key, found in rates.items()}
        sections.append(Section(name, "what was done", tuple(setups), "all-slow", repetitions))
    return Document(
        "A title with <angles> & an ampersand",
        "2026-01-02 03:04 UTC",
        tuple(sections),
        (("fast", "a fast device"), ("slow", "a slow one")),
        (("CPU", "a CPU"), ("kernel", "Linux")),
        (("engine", "rocksdb"),),
        "title: <plan>\n",
        ("A note.",),
    )


def screenshot(html: Path, png: Path, *, dark: bool, height: int) -> Image.Image:
    """What the browser draws. It is allowed no network; the scheme is what the reader's system would say."""
    command = [
        CHROMIUM,
        "--no-sandbox",  # tests run as root
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={png.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={WIDTH},{height}",
        f"--screenshot={png}",
        html.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert png.exists(), done.stderr
    return Image.open(png).convert("RGB")


def colour_of(image: Image.Image, html: str, variable: str, *, dark: bool) -> float:
    """The share of pixels that are about of a colour of the style sheet."""
    light, _, night = html.partition("prefers-color-scheme: dark")
    (found,) = re.findall(rf"--{variable}: #([0-9a-f]{{6}});", night if dark else light)
    wanted = np.array([int(found[at : at + 2], 16) for at in (0, 2, 4)])
    return float((np.abs(np.asarray(image).astype(int) - wanted).max(axis=2) <= 10).mean())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_the_page(document: Document, tmp_path: Path, dark: bool) -> None:
    html, text = tmp_path / "report.html", page(document)
    html.write_text(text)
    image = screenshot(html, tmp_path / "page.png", dark=dark, height=2400)
    assert image.size == (WIDTH, 2400)
    assert colour_of(image, text, "paper", dark=dark) > 0.6
    assert np.asarray(image).mean() < 60 if dark else np.asarray(image).mean() > 200
    for variable in ("s0", "s1", "base", "ink"):  # lines, bars and letters
        assert colour_of(image, text, variable, dark=dark) > 1e-4, f"nothing is drawn in {variable}"
    rows = np.asarray(image).std(axis=(1, 2)) > 1
    blank = max(len(gap) for gap in "".join("x" if row else " " for row in rows).split("x"))
    assert blank < 150, "a part of the page is blank"


def test_a_broken_page_is_seen_as_blank(tmp_path: Path) -> None:
    """The check above can fail: a page without its drawings has none of their colours."""
    html = tmp_path / "empty.html"
    html.write_text("<!DOCTYPE html><title>nothing</title>")
    image = screenshot(html, tmp_path / "empty.png", dark=False, height=600)
    assert len(image.getcolors(1 << 20) or []) == 1


def test_the_page_needs_nothing_else_and_is_well_formed(document: Document) -> None:
    text = page(document)
    outside = re.sub(r"\[.*?\]", "", text)
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", outside)
    assert "default-src 'none'" in text
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)
    assert "&lt;angles&gt; &amp; an ampersand" in text
    assert "<cache>" not in text
    assert "title: &lt;plan&gt;" in text
    for number in re.findall(r'[xy12]="(-?[\d.]+|nan|inf)"', text):
        assert -1 <= float(number) <= 4000


def test_the_page_says_why_a_setup_did_not_run(document: Document) -> None:
    assert page(document).count("this version has no &lt;cache&gt; &amp; says so") == len(document.sections)


def test_ratios_are_taken_within_each_repetition(document: Document) -> None:
    section = document.sections[0]
    assert section.ratio("keigo") == Spread(2.5, 2300 / 1100, 2600 / 900, 3)
    assert section.rate("keigo") == Spread(2500, 2300, 2600, 3)
    assert section.ratio("cached <b>&") is None
    assert section.setups[1].median_run().rate == 2500


def test_only_repetitions_that_agree_make_a_verdict() -> None:
    assert verdict(Spread(1.2, 1.1, 1.3, 3)) == "better"
    assert verdict(Spread(0.8, 0.7, 0.9, 3)) == "worse"
    assert verdict(Spread(1.2, 0.9, 1.3, 3)) == "same"
    assert verdict(Spread(1.2, 1.2, 1.2, 1)) == "same", "one repetition has no spread to judge by"


def test_the_terminal_shows_the_same_figures(document: Document) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables(document))
    text = console.export_text()
    assert "2,500" in text
    assert "2.50 \N{MULTIPLICATION SIGN} (2.09 \N{EN DASH} 2.89)" in text
    assert "cached <b>& did not run: this version has no <cache> & says so" in text


@given(
    st.lists(st.lists(st.integers(1, 10**6), min_size=1, max_size=60), min_size=1, max_size=4),
    st.sampled_from([50.0, 90.0, 99.0]),
)
def test_percentiles_of_all_repetitions_are_those_of_all_latencies(parts: list[list[int]], percent: float) -> None:
    every = sorted(value for part in parts for value in part)
    found = pooled(latency(list(map(float, part))) for part in parts)
    assert found.count == len(every)
    assert found.mean == pytest.approx(sum(every) / len(every))
    if len(every) * (1 - percent / 100) < 1:
        assert found.at(percent) is None, "too few operations to tell"
    else:
        assert found.at(percent) == every[math.ceil(len(every) * percent / 100 - 1e-9) - 1]


@given(st.floats(1e-6, 1e15), st.integers(1, 10))
def test_ticks_reach_the_largest_value_and_are_few(most: float, about: int) -> None:
    for found in (svg.ticks(most, about), size_ticks(most, about)):
        assert found[0] == 0
        assert found == sorted(found)
        assert found[-1] >= most * 0.999
        assert found[-2] < most
        assert 2 <= len(found) <= about + 2


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30))
def test_stairs_hold_each_value_to_its_end(values: list[float]) -> None:
    ends = [float(at + 1) for at in range(len(values))]
    points = svg.stairs(ends, values, 0.0)
    assert [value for _, value in points[::2]] == values
    assert [x for x, _ in points[1::2]] == ends
    assert all(a[0] <= b[0] for a, b in pairwise(points))


def test_bytes_are_stacked_by_tier(document: Document) -> None:
    drawing = traffic_chart(document.sections[0], ["fast", "slow"])
    assert "keigo: fast wrote 572 MiB" in drawing
    assert "keigo: slow wrote 0" in drawing


def test_figures_in_words() -> None:
    assert [count_text(value) for value in (0, 12, 999.9, 12345, 2.5e6)] == ["0", "12", "1 k", "12.3 k", "2.5 M"]
    assert [time_text(value) for value in (0.5, 12.34, 999.9, 5e6)] == ["500 ns", "12.3 µs", "1 ms", "5 s"]
    assert [size_text(value) for value in (0, 100, 1536, 3 << 30)] == ["0", "100 B", "1.5 KiB", "3 GiB"]


def test_a_section_in_which_nothing_ran_is_drawn() -> None:
    section = Section("w", "about", (Setup("a", "x", (), "no device"), Setup("b", "y", (), "no device")), "a", {})
    text = page(Document("t", "now", (section,)))
    assert "no device" in text
    assert charts.latency_charts(section) == ""


def test_the_report_of_a_single_run(tmp_path: Path) -> None:
    def keigo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "keigo", "bench", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)

    options = ("--workload", "a", "--records", "2000", "--operations", "4000", "--interval", "0.05")
    done = keigo("ycsb", *options, "--json", "run.json", "db")
    assert done.returncode == 0, done.stderr
    done = keigo("report", "run.json")
    assert done.returncode == 0, done.stderr
    assert "ycsb-a on rocksdb" in done.stdout
    text = (tmp_path / "run.html").read_text()
    assert "update" in text
    assert "plain directory" in text
    assert keigo("report", "run.json", "--html", "run.json").returncode == 1
    done = keigo("db-bench", "--benchmarks", "fillrandom,readrandom", "--num", "2000", "--json", "native.json", "bench")
    assert done.returncode == 0, done.stderr
    done = keigo("report", "native.json")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"<h2>(\w+random)</h2>", (tmp_path / "native.html").read_text()) == ["fillrandom", "readrandom"]
    (tmp_path / "other.json").write_text("{}")
    done = keigo("report", "other.json")
    assert done.returncode == 1
    assert done.stderr == "Error: other.json: not a result of keigo bench: Object missing required field `format`\n"


@pytest.mark.parametrize("driver", ["kernel"], indirect=True)
def test_the_report_of_a_run_on_a_mount_shows_its_tiers(mounted: World, tmp_path: Path) -> None:
    options = ("--workload", "a", "--records", "2000", "--operations", "9000", "--interval", "0.05")
    done = subprocess.run(
        [sys.executable, "-m", "keigo", "bench", "ycsb", *options, "--json", tmp_path / "run.json", mounted.directory],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = decode((tmp_path / "run.json").read_bytes(), "run.json")
    text = page(document_of_result(result, "a run"))
    assert "Keigo, policy levels, driver kernel" in text
    assert "the fastest" in text
    # What Keigo tells of tiers that share a device is what all of the device moved: then nothing is drawn.
    for factors, drawn in (((1, 2, 3), True), ((1, 2, 2), False), ((1, 0, 0), True)):
        tiers = ("fast", "mid", "slow")
        told = {tier: [0, 4096 * factor] for tier, factor in zip(tiers, factors, strict=True)}
        samples = msgspec.structs.replace(
            result.phases[-1].samples, seconds=[0.0, 1.0], read_bytes=told, written_bytes=told
        )
        phase = msgspec.structs.replace(result.phases[-1], samples=samples)
        text = page(document_of_result(msgspec.structs.replace(result, phases=[phase]), "a run"))
        assert ("As Keigo counted them" in text) == drawn
        assert [f"{tier} wrote" in text for tier in tiers] == [drawn] * 3
