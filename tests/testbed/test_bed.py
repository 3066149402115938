"""Real devices: up, used, down; and down after whatever crashed."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keigo import mounts
from keigo.config import load as load_config
from testbed import server, stack
from tests.testbed.support import FAST, MIB, error_of, good, left_of, run, start

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Path]:
    """Where a testbed may come up; nothing of it is left afterwards."""
    directory = tmp_path / "bed"
    yield directory
    if run("down", directory).returncode != 0:
        # Cleaning up after a failed test is the one place for a lazy unmount.
        loops = [loop for image in (directory / ".testbed").glob("*.image") for loop in stack.loops_of(image)]
        for mount in reversed(mounts.mounts_below(str(directory))):
            ctypes.CDLL(None).umount2(os.fsencode(mount.path), 2)
        for loop in loops:
            subprocess.run(["losetup", "-d", f"/dev/{loop}"], check=False)
        run("down", directory)


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    path = tmp_path / "fast.yaml"
    path.write_text(FAST)
    return path


def status(bed: Path, name: str) -> dict[str, Any]:
    rows = json.loads(good("status", bed, "--json"))["devices"]
    (row,) = [row for row in rows if row["member"]["name"] == name]
    return dict(row)


def trim(path: Path) -> None:
    """Discard what is free; ext4 leaves out blocks whose freeing is not committed."""
    stack.run("sync", "-f", path)
    stack.run("fstrim", path)


def test_up_and_down_again(bed: Path, fast: Path) -> None:
    said = good("up", bed, "--devices", "fast,sata", "--device-file", fast, "--size", "sata=32MiB", "--dilate", "10")
    assert f"keigo mount {bed}/sata/db -d {bed}/devices.yaml" in said
    config = load_config(bed / "devices.yaml")
    assert config.volume == "testbed"
    assert [(tier.name, tier.path, tier.in_place) for tier in config.tiers] == [
        ("fast", bed / "fast/keigo", False),
        ("sata", None, True),
    ]
    for path in (bed / "fast/keigo", bed / "sata/db"):
        assert path.stat().st_mode & 0o777 == 0o700
    for name in ("fast", "sata"):
        mount = mounts.mount_at(str(bed / name))
        assert mount is not None
        assert (mount.fstype, mount.source) == ("ext4", f"/dev/{stack.loops_of(stack.places(bed, name).image)[0]}")
    shown = status(bed, "sata")["member"]
    assert shown["device"]["read"] == {"base_us": 1018.0, "slots": 8, "bandwidth": 50_000_000, "decline": 0.0}
    assert shown["reads"]["us"] >= 0
    good("status", bed)
    assert "is down" in good("down", bed)
    assert not left_of(bed, "fast", "sata")
    assert not bed.exists()
    assert "no testbed is up" in good("down", bed)


def test_data_survive_a_remount_while_up(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    data = os.urandom(3 * MIB + 17)
    (bed / "fast/file").write_bytes(data)
    (loop,) = stack.loops_of(stack.places(bed, "fast").image)
    stack.run("umount", bed / "fast")
    stack.run("e2fsck", "-fn", f"/dev/{loop}")
    stack.run("mount", f"/dev/{loop}", bed / "fast")
    assert (bed / "fast/file").read_bytes() == data


def test_deleted_files_give_their_memory_back(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    trim(bed / "fast")
    before = status(bed, "fast")["memory"]
    with (bed / "fast/file").open("wb") as file:
        file.write(os.urandom(32 * MIB))
        os.fsync(file.fileno())
    full = status(bed, "fast")["memory"]
    assert full - before > 31 * MIB  # the kernel counts resident pages in batches
    (bed / "fast/file").unlink()
    trim(bed / "fast")
    assert full - status(bed, "fast")["memory"] > 31 * MIB


def test_as_many_requests_are_under_way_as_threads_have_made(bed: Path, fast: Path) -> None:
    """100 at once: no queue on the way (loop device, FUSE) holds them back or sends them one by one."""
    good("up", bed, "--device-file", fast)
    image = stack.places(bed, "fast").image
    fd = os.open(bed / "fast/file", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        os.pwrite(fd, mmap.mmap(-1, MIB), 0)
        os.fsync(fd)
        before = server.counts(image)
        server.tell(image, "hold 2e9")
        # Blocks apart, so that nothing can merge them.
        readers = [
            threading.Thread(target=os.preadv, args=(fd, [mmap.mmap(-1, 4096)], 8192 * number)) for number in range(100)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        after = server.counts(image)
    finally:
        os.close(fd)
    assert after["reads"] - before["reads"] == 100
    assert after["read_bytes"] - before["read_bytes"] == 100 * 4096
    assert after["most_under_way"] >= 100


def test_a_second_up_is_refused_and_harms_nothing(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    (bed / "fast/file").write_text("kept")
    assert "a testbed is up here" in error_of("up", bed, "--device-file", fast)
    assert (bed / "fast/file").read_text() == "kept"


def test_a_failure_half_way_undoes_everything(bed: Path, fast: Path) -> None:
    """The second device is larger than the address space that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, hard))
    try:
        said = error_of("up", bed, "--devices", "fast,sata", "--device-file", fast, "--size", "sata=17GiB")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert f"{bed}/.testbed/sata.image: the device server did not start: an image of" in said
    assert not left_of(bed, "fast", "sata")
    assert not bed.exists()


def test_a_directory_in_the_way_is_refused_and_stays(bed: Path, fast: Path) -> None:
    (bed / "sata").mkdir(parents=True)
    (bed / "sata/mine").write_text("kept")
    said = error_of("up", bed, "--devices", "fast,sata", "--device-file", fast, "--size", "sata=32MiB")
    assert f"{bed}/sata: is there already" in said
    assert [path.name for path in bed.iterdir()] == ["sata"]
    assert (bed / "sata/mine").read_text() == "kept"


def test_down_with_a_spoilt_record(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    (bed / ".testbed/state.json").write_text("{")
    assert "state.json: is not a testbed's record" in error_of("status", bed)
    good("down", bed)
    assert not left_of(bed, "fast")
    assert not (bed / "fast").exists()


def test_calibrating_again(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    assert "us/MiB" in good("calibrate", bed)
    shown = status(bed, "fast")["member"]
    assert shown["reads"]["us"] >= 0
    assert shown["writes"]["us"] >= 0


def is_slow(bed: Path, name: str) -> bool:
    """Whether a device runs at its own times, and not at those for calibrating or going down."""
    return server.counts(stack.places(bed, name).image)["running"] == 1


def test_a_calibration_that_fails_leaves_the_device_as_slow_as_it_was(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    assert is_slow(bed, "fast")
    room = os.statvfs(bed / "fast")
    with (bed / "fast/full").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
    assert f"{bed}/fast: No space left on device" in error_of("calibrate", bed)
    assert is_slow(bed, "fast")


def test_a_path_that_yaml_and_shells_take_apart(tmp_path: Path, fast: Path) -> None:
    bed = tmp_path / "a b: c #d's"
    one = fast.with_name("1.yaml")
    fast.rename(one)
    two = fast.with_name("null.yaml")
    two.write_text(FAST)
    try:
        said = good("up", bed, "--device-file", one, "--device-file", two)
        config = load_config(bed / "devices.yaml")
        assert [(tier.name, tier.path) for tier in config.tiers] == [("1", bed / "1/keigo"), ("null", None)]
        (mount,) = [line for line in said.splitlines() if " mount " in line]
        assert shlex.split(mount) == ["keigo", "mount", f"{bed}/null/db", "-d", f"{bed}/devices.yaml"]
    finally:
        good("down", bed)
    assert not bed.exists()


def test_down_after_a_server_was_killed(bed: Path, fast: Path) -> None:
    good("up", bed, "--device-file", fast)
    (bed / "fast/file").write_bytes(bytes(4 * MIB))
    process = server.find(stack.places(bed, "fast").image)
    assert process is not None
    process.kill()
    process.wait(30)
    assert status(bed, "fast")["memory"] is None
    good("status", bed)
    good("down", bed)
    assert not left_of(bed, "fast")
    assert not bed.exists()


@pytest.mark.parametrize("stage", ["begun", "server", "mounted"])
def test_down_after_up_was_killed(bed: Path, fast: Path, stage: str) -> None:
    bed.mkdir()
    reached = {
        "begun": bed / ".testbed",
        "server": bed / ".testbed/fast.image",
        "mounted": bed / "fast",
    }[stage]
    process = start("up", bed, "--devices", "fast,sata", "--device-file", fast, "--size", "sata=32MiB")
    try:
        while not (reached.exists() if stage == "begun" else mounts.mount_at(str(reached))):
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    good("down", bed)
    assert not left_of(bed, "fast", "sata")
    assert not (bed / ".testbed").exists()


def test_a_mount_in_use_stays_and_is_named_and_the_rest_goes(bed: Path, fast: Path) -> None:
    good("up", bed, "--devices", "fast,sata", "--device-file", fast, "--size", "sata=32MiB")
    holder = subprocess.Popen(["sleep", "600"], cwd=bed / "fast")
    try:
        said = error_of("down", bed)
        assert f"{bed}/fast is in use: sleep (pid {holder.pid})" in said
        assert not left_of(bed / "sata", "sata")
        assert mounts.mount_at(str(bed / "sata")) is None
        assert mounts.mount_at(str(bed / "fast")) is not None
        assert is_slow(bed, "fast"), "what stays up is still the device that it was"
    finally:
        holder.kill()
        holder.wait()
    good("down", bed)
    assert not left_of(bed, "fast", "sata")


def test_a_devices_yaml_that_is_there_stays(bed: Path, fast: Path) -> None:
    bed.mkdir()
    (bed / "devices.yaml").write_text("volume: mine\n")
    good("up", bed, "--device-file", fast)
    good("down", bed)
    assert (bed / "devices.yaml").read_text() == "volume: mine\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "nvmm,tape"], "tape: no such device"),
        (["--devices", "nvmm,nvmm"], "nvmm: is wanted twice"),
        (["--devices", "../nvmm"], "'../nvmm': a device's name"),
        (["--size", "nvme=big"], "--size nvme=big: 'big' is not a size"),
        (["--size", "hdd=64MiB"], "hdd: is not among the devices"),
        (["--size", "nvme=4000TiB"], "their empty file systems alone take 3.9 TiB of memory"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(bed: Path, arguments: list[str], said: str) -> None:
    assert said in error_of("up", bed, *arguments)
    assert not bed.exists()


@pytest.mark.parametrize("value", ["nan", "inf", "0.5", "1e9"])
def test_a_dilation_that_makes_no_sense_is_refused(bed: Path, value: str) -> None:
    done = run("up", bed, "--dilate", value)
    assert done.returncode == 2
    assert "Invalid value for '--dilate'" in done.stderr
    assert not bed.exists()


def test_nothing_is_up_says_status(tmp_path: Path) -> None:
    assert "no testbed is up here" in error_of("status", tmp_path)
