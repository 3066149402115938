"""A profile as text: the tables' figures are the measured ones, and all of it fits a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from keigo.devices.baselines import FITS, held_out
from keigo.devices.fit import parameters
from keigo.devices.model import DeviceModel
from keigo.devices.profile import Cell, Direction, Profile, TierProfile, summary_of
from keigo.observe.profile_tables import (
    format_rate,
    format_time,
    held_out_table,
    measured_table,
    mixed_table,
    model_table,
    profile_report,
)
from keigo.units import parse_size
from tests.devices.synthetic import NVMM, measure_sectors, profile_of, synthetic_profile

DIRECTIONS: tuple[Direction, ...] = ("read", "write")
NAMES = ("nvmm", "nvme", "sata")


@pytest.fixture(scope="module")
def full() -> Profile:
    return synthetic_profile(NAMES)


@pytest.fixture(scope="module")
def quick() -> Profile:
    return synthetic_profile(NAMES, quick=True)


def rows_of(table: Table) -> dict[tuple[str, str], list[str]]:
    """The rows by tier and direction; where there are several of one, the last."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    return {(tier, direction): row for tier, direction, *row in zip(*columns, strict=True)}


def printed(profile: Profile, width: int, **options: object) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **options).print(profile_report(profile))  # type: ignore[arg-type]
    return out.getvalue()


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def rate(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(?: ([kM]))?/s", text)
    assert match
    return float(match[1]) * {"k": 1e3, "M": 1e6, None: 1.0}[match[2]]


@pytest.mark.parametrize("kind", ["full", "quick"])
def test_the_measured_figures_are_those_of_the_summary(kind: str, request: pytest.FixtureRequest) -> None:
    profile: Profile = request.getfixturevalue(kind)
    rows = rows_of(measured_table(profile))
    assert list(rows) == [(tier, direction) for tier in NAMES for direction in DIRECTIONS]
    for tier in profile.tiers:
        for direction in DIRECTIONS:
            found = summary_of(tier.cells, direction)
            latency, p99, saturation, most, bandwidth = rows[tier.tier, direction]
            assert seconds(latency) == pytest.approx(found.latency_us / 1e6, rel=0.006)
            assert int(saturation) == found.saturation_k
            assert parse_size(bandwidth.removesuffix("/s")) == pytest.approx(found.bandwidth, rel=0.01)
            like = (direction, "random", 4096, 0)
            small = [c for c in tier.cells if (c.direction, c.pattern, c.block_bytes, c.beside) == like]
            assert rate(most) == pytest.approx(max(c.requests / c.seconds for c in small), rel=0.006)
            assert seconds(p99) == pytest.approx(next(c.p99_us for c in small if c.k == 1) / 1e6, rel=0.006)


def error_of(model: DeviceModel, cell: Cell) -> float:
    time = model.request_time(cell.direction, cell.k, cell.block_bytes, pattern=cell.pattern, beside=cell.beside)
    return abs(time * cell.requests / (cell.k * cell.seconds) - 1)


def test_the_model_s_figures_are_its_parameters_and_its_errors(full: Profile) -> None:
    # A model that is wrong, for the error of a good one is 0.0% in print.
    tiers = [msgspec.structs.replace(tier, model=full.tiers[0].model) for tier in full.tiers]
    rows = rows_of(model_table(profile_of(tiers)))
    for tier in tiers:
        for direction in DIRECTIONS:
            form, base, slots, bandwidth, error, cells = rows[tier.tier, direction]
            found = parameters(tier.model, direction)
            assert form.startswith(("additive", "max"))
            assert seconds(base) == pytest.approx(found.base_seconds, rel=0.006)
            assert float(slots) == pytest.approx(found.slots, abs=0.06)
            assert parse_size(bandwidth.removesuffix("/s")) == pytest.approx(found.bandwidth, rel=0.01)
            own = [cell for cell in tier.cells if cell.direction == direction]
            assert int(cells) == len(own)
            errors = [error_of(tier.model, cell) for cell in own]
            assert float(error.split("%")[0]) == pytest.approx(100 * median(errors), abs=0.051)
    assert float(rows["sata", "read"][4].split("%")[0]) > 50


def test_sectors_show_in_slots_and_nowhere_else(full: Profile) -> None:
    sectors = measure_sectors(NVMM, modify=3.0)
    (alone,) = [tier for tier in full.tiers if tier.tier == "nvmm"]
    tier = msgspec.structs.replace(alone, cells=(*alone.cells, *sectors))
    for table in (measured_table, held_out_table, mixed_table):
        assert rows_of(table(profile_of([tier]))) == rows_of(table(profile_of([alone])))
    mine, theirs = (rows_of(model_table(profile_of([one]))) for one in (tier, alone))
    for direction in DIRECTIONS:
        slots = mine["nvmm", direction].pop(2)
        assert float(slots) == pytest.approx(parameters(tier.model, direction, sectors).slots, abs=0.06)
        theirs["nvmm", direction].pop(2)
    assert mine == theirs
    assert f"{len(tier.cells)} cells on a file" in printed(profile_of([tier]), 120)


def test_all_models_are_compared_on_held_out_cells(quick: Profile) -> None:
    table = held_out_table(quick)
    assert [str(column.header) for column in table.columns[2:]] == ["MQSSD", "DAM", "PDAM", "affine"]
    rows = rows_of(table)
    for tier in quick.tiers:
        for found in held_out(tier.cells, seed=0):
            cell = rows[tier.tier, found.direction][list(FITS).index(found.model)]
            assert cell == f"{found.errors.median:.1%} ({found.errors.p90:.0%})"
    assert all(float(row[0].split("%")[0]) == min(float(cell.split("%")[0]) for cell in row) for row in rows.values())


def test_a_mixed_cell_stands_beside_the_same_cell_alone(full: Profile) -> None:
    rows = rows_of(mixed_table(full))
    for tier in full.tiers:
        cells = {
            (c.k, c.beside): c
            for c in tier.cells
            if (c.direction, c.block_bytes, c.pattern) == ("read", 4096, "random")
        }
        k, beside, block, mean, ratio, _ = rows[tier.tier, "read"]
        assert (k, beside, block) == ("16", "16 writers", "4.0 KiB")
        assert seconds(mean) == pytest.approx(cells[16, 16].mean_us / 1e6, rel=0.006)
        assert float(ratio) == pytest.approx(cells[16, 16].mean_us / cells[16, 0].mean_us, abs=0.006)


@pytest.mark.parametrize("names", [("nvme",), NAMES, ("nvmm", "nvme", "sata", "hdd", "archive")])
@pytest.mark.parametrize("is_quick", [True, False])
def test_eighty_columns_are_enough(names: tuple[str, ...], is_quick: bool) -> None:
    text = printed(synthetic_profile(names, quick=is_quick), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for name in names:
        assert re.search(rf"^{name}: loop0 ext4, 1.0 GiB, ", text, re.MULTILINE)
        for direction in DIRECTIONS:
            assert len(re.findall(rf"^{name} +{direction} .*/s", text, re.MULTILINE)) == 2, "each on one line"
    assert "reads: requests/s, over k" in text
    assert "writes: mean time, over k" in text
    labels = " +".join(str(2**n) for n in range(7))
    assert len(re.findall(rf"^ +{labels} +{labels} *$", text, re.MULTILINE)) == 2, "neither plot is cut off"
    legend = text.splitlines()[-1] if len(names) < 5 else " ".join(text.splitlines()[-2:])
    for mark, name in zip("●▲■◆▼", names, strict=False):
        assert f"{mark} {name}" in legend
        assert text.count(mark) > 1


@pytest.mark.parametrize("width", [20, 40, 61, 62, 80, 100, 131, 250])
def test_any_width_is_kept_to(quick: Profile, width: int) -> None:
    text = printed(quick, width)
    assert max(len(line) for line in text.splitlines()) <= max(width, 30)
    assert "…" not in text, "what has no room goes on in the next line"


def test_reads_stand_above_writes_where_two_plots_have_no_room(quick: Profile) -> None:
    def places(width: int) -> list[int]:
        lines = printed(quick, width).splitlines()
        return [n for n, line in enumerate(lines) for title in ("reads: req", "writes: req") if title in line]

    wide, narrow = places(80), places(50)
    assert wide[0] == wide[1]
    assert narrow[0] < narrow[1]


def test_colours_are_for_terminals(quick: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    plain = printed(quick, 80)
    assert "\x1b" not in plain
    coloured = printed(quick, 80, force_terminal=True)
    assert "\x1b[32m●" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[(\d+;)*3\dm", printed(quick, 80, force_terminal=True))


def test_a_console_that_has_ascii_only_gets_ascii(quick: Profile) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Console(file=out, width=80).print(profile_report(quick))
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "o nvmm  x nvme  s sata" in text
    assert text.count(".") > 300


def keep(tier: TierProfile, wanted: Callable[[Cell], bool]) -> TierProfile:
    return msgspec.structs.replace(tier, cells=tuple(filter(wanted, tier.cells)))


def test_odd_profiles_are_shown(quick: Profile) -> None:
    tier = quick.tiers[0]
    one = msgspec.structs.replace(tier, tier="one", cells=tier.cells[:1])
    reads = keep(msgspec.structs.replace(tier, tier="reads"), lambda cell: cell.direction == "read")
    late = keep(msgspec.structs.replace(tier, tier="late"), lambda cell: cell.k == 16)
    mixed = keep(msgspec.structs.replace(tier, tier="mixed"), lambda cell: cell.beside > 0)
    none = msgspec.structs.replace(tier, tier="none", cells=())
    profile = profile_of([one, reads, late, mixed, none])
    rows = rows_of(measured_table(profile))
    assert rows["one", "read"][0] == format_time(one.cells[0].mean_us / 1e6)
    assert rows["reads", "write"] == rows["late", "read"] == rows["none", "read"] == ["-"] * 5
    assert rows_of(model_table(profile))["none", "read"] == ["-"] * 5 + ["0"]
    assert rows_of(held_out_table(profile))["reads", "read"] == ["-"] * 4
    assert rows_of(mixed_table(profile))["mixed", "read"][4] == "-"
    for shown in ([one], [reads], [late], [mixed], [none], [], [one, reads, late, mixed, none]):
        text = printed(profile_of(shown), 80)
        assert all(f"{tier.tier}: " in text for tier in shown)
        assert ("writes: " in text) == (late in shown)


def test_what_a_device_is_is_said(quick: Profile) -> None:
    device = msgspec.structs.replace(quick.tiers[0].device, filesystem="tmpfs", disk="")
    tier = msgspec.structs.replace(quick.tiers[0], device=device, memory=True, direct=False)
    older = msgspec.structs.replace(quick.tiers[1], created="2026-11-02T08:30:00+00:00", kernel="6.17.9")
    text = printed(profile_of([tier, older], quick=True), 160)
    assert text.startswith("quick profile of 2026-11-21 16:00 UTC, Linux 6.18.0, fio 3.33\n")
    assert "nvmm: tmpfs (memory), 1.0 GiB, 28 cells on a file of 128.0 MiB; through the page cache" in text
    assert "128.0 MiB, measured before the others: 2026-11-02 08:30 UTC, Linux 6.17.9\n" in text


def test_units_are_those_that_people_use() -> None:
    assert [format_time(value) for value in (2e-7, 1e-6, 1.5e-3, 0.9999, 75.0)] == [
        "0.20 us",
        "1.00 us",
        "1.50 ms",
        "1.00 s",
        "75.0 s",
    ]
    assert [format_rate(value) for value in (0.5, 870.0, 1000.0, 1.25e6)] == ["0.50/s", "870/s", "1.00 k/s", "1.25 M/s"]


@given(st.floats(min_value=1e-9, max_value=1e4))
def test_a_time_keeps_its_first_digits(value: float) -> None:
    text = format_time(value)
    assert seconds(text) == pytest.approx(value, rel=0.006, abs=0.006e-6)
    assert len(text) <= 8


@given(st.floats(min_value=0.1, max_value=9e8))
def test_a_rate_keeps_its_first_digits(value: float) -> None:
    assert rate(format_rate(value)) == pytest.approx(value, rel=0.006, abs=0.006)
