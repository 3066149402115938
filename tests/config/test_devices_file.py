"""A tier is added to the text of a devices.yaml, or taken out, and nothing else of it changes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo.config import ConfigError, parse
from keigo.devices_file import mentions, read, replace, with_tier, without_tier

SOURCE = Path("/etc/devices.yaml")
NEW = {"name": "new", "path": "/mnt/new", "capacity": "10GiB"}

BLOCK = """\
volume: v  # its name
tiers:
  # the fast one
  - name: fast   # NVMe
    path: /mnt/fast

  # the slow one
  - name: slow
    in_place: true
# where files go
placement: {policy: cost}
"""

BLOCK_WITH_MID = """\
volume: v  # its name
tiers:
  # the fast one
  - name: fast   # NVMe
    path: /mnt/fast
  - name: new
    path: /mnt/new
    capacity: 10GiB

  # the slow one
  - name: slow
    in_place: true
# where files go
placement: {policy: cost}
"""


def test_in_the_style_of_the_others() -> None:
    assert with_tier(SOURCE, BLOCK, NEW, "slow") == BLOCK_WITH_MID


def test_a_list_within_a_line() -> None:
    text = "volume: v\ntiers: [{name: fast, path: /a}, {name: slow, in_place: true}]  # all\n"
    new = "{name: new, path: /mnt/new, capacity: 10GiB}"
    assert with_tier(SOURCE, text, NEW, "fast") == text.replace("[", f"[{new}, ")
    assert with_tier(SOURCE, text, NEW, None) == text.replace("]", f", {new}]")


HEADS = ["volume: v\n", "# a comment\nvolume: v\n\n"]
ITEMS = [
    "{dash}- {{name: {name}, {place}}}\n",
    "{dash}- name: {name}\n{dash}  {place}\n",
    "{dash}-\n{dash}  name: {name}\n{dash}  {place}\n",
]
COMMENTS = ["", "  # of a tier\n", "# at the margin\n", "\n"]
TAILS = ["", "# the end\n", "catalog: t0\n", "pins: {'*.sst': t0}\n"]


@given(
    head=st.sampled_from(HEADS),
    dash=st.sampled_from(["", "  ", "    "]),
    items=st.lists(st.tuples(st.sampled_from(ITEMS), st.sampled_from(COMMENTS)), min_size=1, max_size=4),
    tail=st.sampled_from(TAILS),
    ending=st.booleans(),
    path=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12),
    data=st.data(),
)
def test_every_other_line_stays(
    head: str, dash: str, items: list[tuple[str, str]], tail: str, ending: bool, path: str, data: st.DataObject
) -> None:
    lines = [head, "tiers:\n"]
    for number, (item, comment) in enumerate(items):
        place = "in_place: true" if number == len(items) - 1 else f"path: /mnt/{number}"
        lines += [comment, item.format(dash=dash, name=f"t{number}", place=place)]
    text = "".join([*lines, tail])
    text = text if ending else text.rstrip("\n")
    before = data.draw(st.sampled_from([None, *(f"t{number}" for number in range(len(items)))]))
    changed = with_tier(SOURCE, text, {"name": "new", "path": f"/{path}"}, before)
    old, new = parse(SOURCE, text.encode()), parse(SOURCE, changed.encode())
    assert [tier for tier in new.tiers if tier.name != "new"] == list(old.tiers)
    at = len(items) if before is None else int(before[1:])
    assert (new.tiers[at].name, new.tiers[at].path) == ("new", Path(f"/{path}"))
    left = iter(changed.splitlines())
    assert all(line in left for line in text.splitlines()), "a line is gone, or stands elsewhere"
    back = without_tier(SOURCE, changed, "new")
    assert (back if ending else back.rstrip("\n")) == text


@pytest.mark.parametrize("before", ["fast", "slow", None])
def test_a_list_within_a_line_gets_shorter_again(before: str | None) -> None:
    text = "volume: v\ntiers: [{name: fast, path: /a}, {name: slow, in_place: true}]  # all\n"
    assert without_tier(SOURCE, with_tier(SOURCE, text, NEW, before), "new") == text


def test_comments_within_a_list_of_many_lines_stay() -> None:
    text = "volume: v\ntiers: [\n  {name: a, path: /a},  # a\n  {name: b, path: /b},\n # c\n  {name: c, path: /c}]\n"
    assert without_tier(SOURCE, text, "a") == text.replace("{name: a, path: /a},  #", "#")
    assert without_tier(SOURCE, text, "b") == text.replace("{name: b, path: /b},", "")


def test_what_is_used_elsewhere_is_left_alone() -> None:
    text = "volume: v\ntiers:\n- {name: a, path: /a, capacity: &size 1GiB}\n- {name: b, path: /b, capacity: *size}\n"
    with pytest.raises(ConfigError):
        without_tier(SOURCE, text, "a")
    with pytest.raises(ConfigError):
        without_tier(SOURCE, BLOCK + "catalog: fast\n", "fast")


def test_who_names_a_tier() -> None:
    text = BLOCK.replace("{policy: cost}", "\n  policy: levels\n  levels: {fast: [0], slow: [1]}\n")
    text += "catalog: fast\ncache: {tier: fast, capacity: 1GiB}\npins:\n  '*.a': slow\n  '*.b': fast\n"
    parse(SOURCE, text.encode())
    found = [(key, text.splitlines()[line - 1]) for line, key in mentions(text, "fast")]
    assert found == [
        ("catalog", "catalog: fast"),
        ("cache: tier", "cache: {tier: fast, capacity: 1GiB}"),
        ("placement: levels: fast", "  levels: {fast: [0], slow: [1]}"),
        ("pins: *.b", "  '*.b': fast"),
    ]
    assert mentions(BLOCK, "fast") == []


@pytest.mark.parametrize(
    "tier",
    [
        {"name": "fast", "path": "/x"},
        {"name": "a b", "path": "/x"},
        {"name": "new", "path": "/x", "capacity": "much"},
        {"name": "yes", "path": "/x"},
    ],
)
def test_what_would_be_no_devices_yaml_is_refused(tier: dict[str, str]) -> None:
    if tier["name"] == "yes":
        assert parse(SOURCE, with_tier(SOURCE, BLOCK, tier, None).encode()).tiers[-1].name == "yes"  # YAML 1.2
        return
    with pytest.raises(ConfigError):
        with_tier(SOURCE, BLOCK, tier, None)


def test_a_list_behind_an_alias_is_left_alone() -> None:
    text = "volume: v\ntiers: [&a {name: fast, path: /a}, {name: slow, in_place: true}]\n"
    assert "&a" in with_tier(SOURCE, text, NEW, None)


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "devices.yaml"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["devices.yaml", "real.yaml"]


def test_ends_of_lines_and_letters_stay(tmp_path: Path) -> None:
    source = tmp_path / "devices.yaml"
    said = "# für alle\r\nvolume: v\r\ntiers:\r\n  - {name: slow, in_place: true}\r\n".encode()
    source.write_bytes(said)
    replace(source, with_tier(source, read(source), NEW, "slow"))
    left = iter(source.read_bytes().splitlines(keepends=True))
    assert all(line in left for line in said.splitlines(keepends=True))
    replace(source, without_tier(source, read(source), "new"))
    assert source.read_bytes() == said


def test_a_text_that_may_not_last_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "devices.yaml"
    source.write_text("before")
    sync = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace(source, "after")
    assert source.read_text() == "before"
    assert os.listdir(tmp_path) == ["devices.yaml"]
