"""DAM, PDAM and affine: their formulas by hand, their fits on devices that are so, and MQSSD against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.devices.baselines import (
    Affine,
    Baseline,
    Dam,
    Pdam,
    errors,
    fit_affine,
    fit_dam,
    fit_pdam,
    held_out,
)
from keigo.devices.fit import fit
from keigo.devices.profile import Cell, Direction
from tests.devices.synthetic import BLOCKS, DEVICES, FULL_KS, KIB, MIB, NVME, measure_device, measure_sectors
from tests.devices.test_fit import SLOWED, both, cell, shaken

FITS: list[Callable[[Sequence[Cell]], Baseline]] = [fit_dam, fit_pdam, fit_affine]


def grid(time: Callable[[float, float], float]) -> list[Cell]:
    return both([cell(k, x, time(k, x)) for k in FULL_KS for x in BLOCKS])


def test_dam_takes_a_step_a_block() -> None:
    dam = Dam(block_bytes=4096, step_seconds=1e-3)
    assert dam.request_time(1, 4096) == pytest.approx(1e-3)
    assert dam.request_time(1, 4097) == pytest.approx(2e-3)
    assert dam.request_time(3, 8192) == pytest.approx(6e-3)


def test_pdam_takes_a_step_for_every_p_blocks() -> None:
    pdam = Pdam(block_bytes=4096, slots=4, step_seconds=1e-3)
    assert pdam.request_time(1, 4096) == pytest.approx(1e-3)
    assert pdam.request_time(4, 4096) == pytest.approx(1e-3)
    assert pdam.request_time(5, 4096) == pytest.approx(2e-3)
    assert pdam.request_time(1, 16384) == pytest.approx(1e-3)
    assert pdam.request_time(3, 8192) == pytest.approx(2e-3)


def test_affine_takes_a_setup_and_a_transfer_each() -> None:
    affine = Affine(setup_seconds=1e-3, byte_seconds=1e-8)
    assert affine.request_time(1, 100_000) == pytest.approx(2e-3)
    assert affine.request_time(4, 100_000) == pytest.approx(8e-3)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_dam_device_is_recovered(block: int) -> None:
    found = fit_dam(shaken(grid(Dam(block, 1e-3).request_time), 0.02)).costs["read", "random"]
    assert isinstance(found, Dam)
    assert found.block_bytes == block
    assert found.step_seconds == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("slots", [1, 3, 8, 32])
def test_a_pdam_device_is_recovered(slots: int) -> None:
    found = fit_pdam(shaken(grid(Pdam(16 * KIB, slots, 1e-3).request_time), 0.02)).costs["read", "random"]
    assert isinstance(found, Pdam)
    assert (found.block_bytes, found.slots) == (16 * KIB, slots)
    assert found.step_seconds == pytest.approx(1e-3, rel=0.02)


@pytest.mark.parametrize("transfer", [1e-10, 1e-8, 1e-6])
def test_an_affine_device_is_recovered(transfer: float) -> None:
    found = fit_affine(shaken(grid(Affine(1e-3, transfer).request_time), 0.02)).costs["read", "random"]
    assert isinstance(found, Affine)
    assert found.setup_seconds == pytest.approx(1e-3, rel=0.05)
    assert found.byte_seconds == pytest.approx(transfer, rel=0.05)


@pytest.mark.parametrize("fitted", FITS)
def test_directions_and_patterns_are_fitted_apart(fitted: Callable[[Sequence[Cell]], Baseline]) -> None:
    cells = [
        cell(k, x, k * x * 1e-8 * times, direction, pattern)  # type: ignore[arg-type]
        for k in (1, 4)
        for x in BLOCKS
        for direction, pattern, times in (("read", "random", 1), ("write", "random", 2), ("read", "sequential", 4))
    ]
    cells.append(cell(1, 4 * KIB, 10.0, beside=4))
    model = fitted(cells)
    alone = model.request_time("read", 2, MIB)
    assert model.request_time("write", 2, MIB) == pytest.approx(2 * alone)
    assert model.request_time("read", 2, MIB, pattern="sequential") == pytest.approx(4 * alone)
    assert model.request_time("write", 2, MIB, pattern="sequential") == model.request_time("write", 2, MIB)
    assert model.request_time("read", 2, MIB, beside=5) == alone
    assert model.request_time("read", 0.2, MIB) == model.request_time("read", 1, MIB)


@pytest.mark.parametrize("fitted", FITS)
def test_what_was_not_measured_is_said(fitted: Callable[[Sequence[Cell]], Baseline]) -> None:
    with pytest.raises(ValueError, match=r"^no random write was measured$"):
        fitted([cell(1, 4096, 1e-3)])


@pytest.mark.parametrize("fitted", FITS)
@given(k=st.floats(0, 200), size=st.sampled_from(BLOCKS), direction=st.sampled_from(["read", "write"]))
def test_larger_blocks_and_more_requests_never_take_less(
    fitted: Callable[[Sequence[Cell]], Baseline], k: float, size: int, direction: Direction
) -> None:
    model = fitted(both([cell(k, x, max(1e-3, k * x * 1e-9)) for k in (1, 8, 64) for x in (4 * KIB, MIB)]))
    time = model.request_time(direction, k, size)
    assert 0 < time <= model.request_time(direction, k, 2 * size)
    assert time <= model.request_time(direction, k + 1, size)


def test_errors_are_relative_to_what_was_measured() -> None:
    model = Baseline("affine", {("read", "random"): Affine(1e-3, 0)})
    cells = [cell(1, 4096, 1e-3), cell(1, 4096, 2e-3), cell(1, 4096, 0.5e-3)]
    found = errors(model, cells)
    assert found.cells == 3
    assert found.median == pytest.approx(0.5)
    assert found.p90 == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no cells"):
        errors(model, [])


def test_errors_of_mixed_cells_know_of_the_others() -> None:
    cells = both([cell(k, x, 1e-3 + k * x * 1e-8) for k in (1, 4) for x in BLOCKS])
    mixed = cell(4, 4 * KIB, 2 * (1e-3 + 4 * 4096 * 1e-8), beside=4)
    assert errors(fit([*cells, mixed]), [mixed]).median == pytest.approx(0, abs=0.01)
    assert errors(fit(cells), [mixed]).median == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["nvmm", "nvme", "sata"])
@pytest.mark.parametrize("quick", [False, True])
def test_mqssd_predicts_what_it_has_not_seen_and_better_than_the_others(name: str, quick: bool) -> None:
    cells = shaken(measure_device(SLOWED[name], quick=quick, noise=0.02), 0.02)
    rows = held_out(cells, seed=1)
    assert [(row.direction, row.model) for row in rows] == [
        (direction, model) for direction in ("read", "write") for model in ("MQSSD", "DAM", "PDAM", "affine")
    ]
    found = {(row.model, row.direction): row.errors for row in rows}
    for direction in ("read", "write"):
        ours = found["MQSSD", direction]
        assert ours.cells == sum(1 for one in cells if one.direction == direction and not one.beside)
        assert ours.median < 0.15
        assert ours.median < min(found[model, direction].median for model in ("DAM", "PDAM", "affine"))


def test_every_cell_is_held_out_of_the_fits_that_predict_it() -> None:
    cells = measure_device(NVME, quick=True)
    # A time that nothing else tells of: whoever has seen the cell predicts it better.
    odd = msgspec.structs.replace(cells[3], seconds=cells[3].seconds * 50)
    spoilt = [*cells[:3], odd, *cells[4:]]
    assert errors(fit(spoilt), [odd]).median < 0.5
    worst = max(row.errors.p90 for row in held_out([odd, *both(cells[:3])], seed=3) if row.model == "MQSSD")
    assert worst > 0.5


def test_sectors_are_no_model_s_business() -> None:
    cells = measure_device(DEVICES["nvmm"])
    more = [*measure_sectors(DEVICES["nvmm"], modify=7.0), *cells]
    assert held_out(more, seed=3) == held_out(cells, seed=3)
    for fitted in FITS:
        assert fitted(more) == fitted(cells)


def test_the_seed_decides_what_is_held_out() -> None:
    cells = shaken(measure_device(NVME, quick=True), 0.1)
    assert held_out(cells, seed=1) == held_out(cells, seed=1)
    assert held_out(cells, seed=1) != held_out(cells, seed=2)
