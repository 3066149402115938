"""Names: long ones, any bytes, and the one that is Keigo's own."""

from __future__ import annotations

import errno
import os

import pytest

from keigo.control import ask
from keigo.tiers.fds import RENAME_EXCHANGE
from tests.fs.support import Act, Area, raises, rename2

# What ext4 and the kernel allow: anything but "/" and zero.
STRANGE = [b"\xff\xfe", b"caf\xe9", "日本".encode(), b"new\nline", b" ", b"-", b"...", b"\x01", b"%s{}", b"'\"`$(x)"]


@pytest.mark.parametrize("suffix", [b".log", b".sst", b""], ids=["fast", "sst", "slow"])
@pytest.mark.parametrize("name", STRANGE)
def test_any_bytes_but_slash_and_zero(area: Area, name: bytes, suffix: bytes) -> None:
    digits = b"000001" if suffix == b".log" else b""
    directory = os.fsencode(area.path)
    path = os.path.join(directory, digits + name + suffix)
    with open(path, "wb") as file:
        file.write(b"data")
    assert os.listdir(directory) == [digits + name + suffix]
    os.mkdir(os.path.join(directory, b"d" + name))
    os.rename(path, os.path.join(directory, b"d" + name, name + suffix))
    os.rename(os.path.join(directory, b"d" + name), os.path.join(directory, b"e" + name))
    with open(os.path.join(directory, b"e" + name, name + suffix), "rb") as file:
        assert file.read() == b"data"
    assert len(area.rows()) == 1  # and `ls` can tell


@pytest.mark.parametrize("name", STRANGE[:2])
def test_bytes_that_are_not_text_on_two_tiers(area: Area, name: bytes) -> None:
    """Rename over another tier, exchange, and migration: they write down what they do."""
    fast, slow = (os.path.join(os.fsencode(area.path), part) for part in (name + b".sst", name))
    for path in (fast, slow):
        with open(path, "wb") as file:
            file.write(path[-4:])
    rename2(fast, slow, RENAME_EXCHANGE)
    with open(slow, "rb") as file:
        assert file.read() == b".sst"
    rename2(fast, slow, RENAME_EXCHANGE)
    answer = ask(area.world.volume, "migrate", pattern=f"{area.name}/*.sst", tier="mid")
    assert len(answer["moved"]) == 1
    os.rename(fast, slow)
    assert os.listdir(os.fsencode(area.path)) == [name]
    with open(slow, "rb") as file:
        assert file.read() == b".sst"


@pytest.mark.parametrize("end", ["", ".log", ".sst"])
def test_names_of_255_bytes(area: Area, end: str) -> None:
    name = "1" * (255 - len(end)) + end
    path = area.path / name
    path.write_bytes(b"x")
    assert path.read_bytes() == b"x"
    assert os.listdir(area.path) == [name]
    path.rename(area.path / ("2" + name[1:]))
    (area.path / name).mkdir()
    (area.path / name / name).write_bytes(b"deep")
    assert (area.path / name / name).read_bytes() == b"deep"


def test_an_sst_with_a_long_name_migrates(area: Area) -> None:
    name = "9" * 251 + ".sst"
    (area.path / name).write_bytes(b"x")
    area.migrate(name, "mid")
    assert area.tier_of(name) == "mid"


@pytest.mark.parametrize("end", ["", ".log", ".sst"])
def test_names_of_256_bytes_are_too_long(area: Area, end: str) -> None:
    name = "1" * (256 - len(end)) + end
    path, other = area.path / name, area.path / "x"
    other.write_bytes(b"x")
    acts: list[Act] = [
        lambda: path.write_bytes(b"x"),
        path.mkdir,
        path.stat,
        lambda: path.symlink_to("x"),
        lambda: path.hardlink_to(other),
        lambda: os.mkfifo(path),
        lambda: other.rename(path),
        path.unlink,
        path.rmdir,
    ]
    for act in acts:
        with raises(errno.ENAMETOOLONG):
            act()
    assert os.listdir(area.path) == ["x"]


def test_long_paths(area: Area) -> None:
    here = os.open(area.path, os.O_RDONLY)
    for _ in range(30):  # 30 * 200 bytes: longer than PATH_MAX
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    fd = os.open("000001.log", os.O_CREAT | os.O_RDWR, dir_fd=here)
    os.write(fd, b"deep")
    os.rename("000001.log", "plain", src_dir_fd=here, dst_dir_fd=here)
    os.close(fd)
    assert os.stat("plain", dir_fd=here).st_size == 4
    os.close(here)


def test_the_state_directory_is_hidden_and_refused(area: Area) -> None:
    root = area.world.directory
    ours, plain = root / ".keigo", root / "hidden-test"
    assert ".keigo" not in os.listdir(root)
    plain.write_bytes(b"x")
    try:
        missing: list[Act] = [ours.stat, ours.unlink, ours.rmdir, lambda: os.listdir(ours), lambda: ours.rename(plain)]
        for act in missing:
            with raises(errno.ENOENT):
                act()
        forbidden: list[Act] = [
            lambda: ours.write_bytes(b"x"),
            ours.mkdir,
            lambda: ours.symlink_to("x"),
            lambda: ours.hardlink_to(plain),
            lambda: os.mkfifo(ours),
            lambda: plain.rename(ours),
        ]
        for act in forbidden:
            with raises(errno.EPERM):
                act()
        with raises(errno.ENOENT, errno.EPERM):
            rename2(plain, ours, RENAME_EXCHANGE)
        assert plain.read_bytes() == b"x"
    finally:
        plain.unlink()
    below = area.path / ".keigo"
    below.write_bytes(b"only the root's is special")
    assert os.listdir(area.path) == [".keigo"]
    assert root.stat().st_nlink == 2 + sum(path.is_dir() for path in root.iterdir())


def test_names_that_keigo_itself_uses_elsewhere(area: Area) -> None:
    for name in ("incoming", "intent", "lost", "lock", "guard", "unguard", "volume.json", "tier.json", "lost+found"):
        (area.path / name).write_bytes(name.encode())
    found = {path.name: path.read_bytes().decode() for path in area.path.iterdir()}
    assert found == {name: name for name in found}
    assert len(found) == 9
