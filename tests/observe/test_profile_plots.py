"""The picture of a profile: all that was measured is in it, where it belongs, and can be read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Text

from keigo.devices.profile import Cell, Direction, Pattern, Profile, ProfileError, TierProfile, summary_of
from keigo.observe.profile_plots import profile_figure, save_figure
from tests.devices.synthetic import NVMM, measure_sectors, profile_of, synthetic_profile, tier_profile

DIRECTIONS: tuple[Direction, ...] = ("read", "write")
PATTERNS: tuple[Pattern, ...] = ("random", "sequential")


@pytest.fixture(scope="module")
def full() -> Profile:
    return synthetic_profile(("nvmm", "nvme", "sata", "hdd", "archive"))


@pytest.fixture(scope="module")
def quick() -> Profile:
    return synthetic_profile(quick=True)


def panels_of(figure: Figure, profile: Profile) -> list[tuple[TierProfile, list[Axes]]]:
    """The three panels of each tier."""
    axes = figure.get_axes()
    assert len(axes) == 3 * len(profile.tiers)
    return [(tier, axes[3 * row : 3 * row + 3]) for row, tier in enumerate(profile.tiers)]


def points(axes: Axes, gid: str) -> list[tuple[float, float]]:
    """What the artists with this gid show."""
    found = [line for line in axes.get_lines() if line.get_gid() == gid]
    return sorted((x, y) for line in found for x, y in data_of(line))


def data_of(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def same(shown: Sequence[tuple[float, float]], expected: Sequence[tuple[float, float]]) -> bool:
    return len(shown) == len(expected) and bool(np.allclose(shown, expected, rtol=1e-9, atol=0))


def drawn(figure: Figure) -> RendererAgg:
    """Draw it as `savefig` does."""
    canvas = FigureCanvasAgg(figure)
    figure.draw(canvas.get_renderer())  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    assert isinstance(renderer, RendererAgg)
    return renderer


def small_cells(tier: TierProfile, direction: Direction) -> list[Cell]:
    like = (direction, "random", 4096, 0)
    found = [cell for cell in tier.cells if (cell.direction, cell.pattern, cell.block_bytes, cell.beside) == like]
    return sorted(found, key=lambda cell: cell.k)


@pytest.mark.parametrize("kind", ["full", "quick"])
def test_every_cell_over_k_is_a_point(kind: str, request: pytest.FixtureRequest) -> None:
    profile: Profile = request.getfixturevalue(kind)
    for tier, (throughput, latency, _) in panels_of(profile_figure(profile), profile):
        for direction in DIRECTIONS:
            cells = small_cells(tier, direction)
            assert len(cells) >= 7
            rates = [(cell.k, cell.requests / cell.seconds) for cell in cells]
            assert same(points(throughput, f"measured {direction}"), rates)
            assert same(points(latency, f"measured {direction}"), [(cell.k, cell.mean_us / 1e6) for cell in cells])
            assert same(points(latency, f"p99 {direction}"), [(cell.k, cell.p99_us / 1e6) for cell in cells])


def test_every_cell_at_the_ks_of_bandwidth_is_a_point(full: Profile) -> None:
    for tier, (_, _, bandwidth) in panels_of(profile_figure(full), full):
        gids = [str(line.get_gid()) for line in bandwidth.get_lines()]
        for direction in DIRECTIONS:
            saturation = summary_of(tier.cells, direction).saturation_k
            assert sum(gid.startswith(f"measured {direction} random") for gid in gids) == len({1, saturation})
            for pattern in PATTERNS:
                for k in {1, saturation}:
                    cells = [
                        c for c in tier.cells if (c.direction, c.pattern, c.k, c.beside) == (direction, pattern, k, 0)
                    ]
                    shown = points(bandwidth, f"measured {direction} {pattern} {k}")
                    found = sorted((c.block_bytes, c.bandwidth / 2**20) for c in cells)
                    assert same(shown, found)
                    assert pattern == "sequential" or len(shown) == 5


def test_bandwidth_is_shown_at_a_k_that_was_measured(quick: Profile) -> None:
    figure = profile_figure(quick)
    for tier, (_, _, bandwidth) in panels_of(figure, quick):
        for direction in DIRECTIONS:
            assert len(points(bandwidth, f"measured {direction} random 16")) == 4
            notes = [text for text in bandwidth.texts if text.get_text() == "filled: k = 16"]
            assert len(notes) == 2, tier.tier


def test_sectors_are_not_drawn(full: Profile) -> None:
    (alone,) = [tier for tier in full.tiers if tier.tier == "nvmm"]
    tier = msgspec.structs.replace(alone, cells=(*measure_sectors(NVMM), *alone.cells))
    with_sectors, without = (
        [
            [(line.get_gid(), data_of(line)) for line in axes.get_lines()]
            for axes in profile_figure(profile_of([one])).get_axes()
        ]
        for one in (tier, alone)
    )
    assert with_sectors == without


def test_the_lines_are_the_model(full: Profile) -> None:
    for tier, (throughput, latency, bandwidth) in panels_of(profile_figure(full), full):
        for direction in DIRECTIONS:
            time = tier.model.request_time
            line = points(latency, f"model {direction}")
            assert len(line) > 50
            assert [line[0][0], line[-1][0]] == pytest.approx([1, 64])
            assert all(y == pytest.approx(time(direction, k, 4096)) for k, y in line)
            line = points(throughput, f"model {direction}")
            assert all(y == pytest.approx(k / time(direction, k, 4096)) for k, y in line)
            line = points(bandwidth, f"model {direction} sequential 1")
            found = [(x, x / time(direction, 1, x, pattern="sequential") / 2**20) for x, _ in line]
            assert same(line, found)


def test_a_ring_marks_saturation(full: Profile) -> None:
    for tier, (throughput, latency, _) in panels_of(profile_figure(full), full):
        for direction in DIRECTIONS:
            k = summary_of(tier.cells, direction).saturation_k
            for axes in (throughput, latency):
                (ring,) = points(axes, f"saturation {direction}")
                assert ring[0] == k
                assert ring in points(axes, f"measured {direction}")
            assert f"k* = {k}" in [text.get_text() for text in throughput.texts]


def test_nothing_lies_outside_the_panels(full: Profile) -> None:
    for _, panels in panels_of(profile_figure(full), full):
        for axes in panels:
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            for line in axes.get_lines():
                assert all(left < x < right and low < y < high for x, y in data_of(line))


def texts_of(figure: Figure) -> list[Text]:
    """All texts that are seen."""
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text()]


@pytest.mark.parametrize("names", [("nvmm",), ("nvmm", "nvme", "sata"), ("nvmm", "nvme", "sata", "hdd", "archive")])
@pytest.mark.parametrize("is_quick", [False, True])
def test_no_text_is_cut_off_or_lies_upon_another(names: tuple[str, ...], is_quick: bool) -> None:
    profile = synthetic_profile(names, quick=is_quick)
    longest = msgspec.structs.replace(profile.tiers[0], tier="a-tier-with-a-name-of-32-letters", direct=False)
    profile = msgspec.structs.replace(profile, tiers=(longest, *profile.tiers[1:]))
    figure = profile_figure(profile)
    renderer = drawn(figure)
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts_of(figure)]
    boxes = [(text, box) for text, box in boxes if box.width > 0]
    assert len(boxes) > 40 * len(names)
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= width, text
        assert 0 <= box.y0 < box.y1 <= height, text
    for (one, first), (other, second) in combinations(boxes, 2):
        apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
        assert apart, f"{one!r} lies upon {other!r}"


@pytest.mark.parametrize("tiers", [1, 3])
def test_the_file_is_a_picture_of_the_stated_size(tiers: int, tmp_path: Path) -> None:
    profile = synthetic_profile(("nvmm", "nvme", "sata")[:tiers], quick=True)
    save_figure(profile, tmp_path / "devices.profile.png")
    assert [path.name for path in tmp_path.iterdir()] == ["devices.profile.png"]
    pixels = imread(tmp_path / "devices.profile.png")
    assert pixels.shape[:2] == (round(120 * (0.75 + 3 * tiers)), 13 * 120)
    colours = (pixels[..., :3] * 255).round().astype(np.uint8)
    for colour in ((0, 114, 178), (213, 94, 0)):
        assert (colours == colour).all(axis=2).sum() > 500
    inked = (pixels[..., :3].min(axis=2) < 0.9).mean()
    assert 0.01 < inked < 0.3


def test_a_users_own_style_changes_nothing(tmp_path: Path, quick: Profile) -> None:
    save_figure(quick, tmp_path / "plain.png")
    with mpl.rc_context({"figure.facecolor": "black", "savefig.bbox": "tight", "font.size": 30, "text.usetex": True}):
        save_figure(quick, tmp_path / "styled.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, quick: Profile) -> None:
    with pytest.raises(ProfileError, match=r"missing/p\.png: No such file or directory"):
        save_figure(quick, tmp_path / "missing" / "p.png")


def test_a_dollar_in_a_name_is_a_dollar(quick: Profile) -> None:
    tier = msgspec.structs.replace(quick.tiers[0], tier="$fast$")
    figure = profile_figure(profile_of([tier]))
    drawn(figure)
    assert any(text.get_text() == r"\$fast\$" for text in texts_of(figure))


def without(tier: TierProfile, *directions: Direction) -> TierProfile:
    return msgspec.structs.replace(tier, cells=tuple(cell for cell in tier.cells if cell.direction not in directions))


def test_odd_profiles_are_drawn(quick: Profile, tmp_path: Path) -> None:
    tier = quick.tiers[0]
    one = msgspec.structs.replace(tier, cells=tier.cells[:1])
    mixed = msgspec.structs.replace(tier, cells=tuple(cell for cell in tier.cells if cell.beside))
    late = msgspec.structs.replace(tier, cells=tuple(cell for cell in tier.cells if cell.k == 16))
    tiers = [one, mixed, late, without(tier, "write"), without(tier, "read", "write")]
    figure = profile_figure(profile_of(tiers))
    drawn(figure)
    panels = [axes for _, axes in panels_of(figure, profile_of(tiers))]
    assert same(points(panels[0][0], "measured read"), [(1, one.cells[0].requests / one.cells[0].seconds)])
    assert points(panels[3][0], "measured write") == []
    for axes in panels[4]:
        assert [text.get_text() for text in axes.texts] == ["not measured"]
    save_figure(profile_of([]), tmp_path / "empty.png")


def test_a_profile_of_random_cells_only_has_no_sequential_points(quick: Profile) -> None:
    tier = tier_profile("t", [cell for cell in quick.tiers[0].cells if cell.pattern == "random"])
    assert tier.model.sequential_read is None
    figure = profile_figure(profile_of([tier]))
    gids = [str(line.get_gid()) for axes in figure.get_axes() for line in axes.get_lines()]
    assert gids
    assert not any("sequential" in gid for gid in gids)
