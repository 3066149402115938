"""Real mounts for tests, cleaned up whatever happens."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from keigo import mounts
from keigo.control import ask, is_served, socket_path
from tests import scratch

# What must pass before a change lands passes every time; `scripts/soak` looks for more.
settings.register_profile("steady", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("soak", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """Workers get their places from the process that starts them."""
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        place = scratch.make()
        if place is not None:
            config.option.basetemp = str(place / "t")
            config.add_cleanup(lambda: scratch.remove(place))


# A job in the background of a script ignores Ctrl-C, and so would every program that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MIB = 1 << 20
LEVELS = "{fast: [wal, 0, 1], mid: [2, 3], slow: [4, 5, 6]}"


@dataclass
class World:
    """A data directory, its tiers, and the volume that joins them; not mounted until `mount`."""

    base: Path
    directory: Path
    tiers: dict[str, Path]
    volume: str
    config: Path
    driver: str
    pids: list[int] = field(default_factory=list)
    under: tuple[str | Path, ...] = ()
    """What a daemon is started by, as `prlimit`."""

    def keigo(
        self, *args: str | Path, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        done = subprocess.run(
            [sys.executable, "-m", "keigo", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **(env or {})},
        )
        if check and done.returncode != 0:
            raise AssertionError(f"keigo {args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.log()}")
        return done

    @property
    def log_file(self) -> Path:
        return self.base / "daemon.log"

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def mount(self, *args: str, env: Mapping[str, str] | None = None, module: str = "keigo") -> None:
        """Start the daemon as `keigo mount` does, without the process that would wait for it.

        `module` is what is run; `keigo.keeper` starts the daemon below itself.
        """
        told, tell = os.pipe()
        command = [sys.executable, "-m", module, "mount", str(self.directory), "-d", str(self.config)]
        command += ["--driver", self.driver, *args, "--foreground", "--ready-fd", str(tell)]
        with os.fdopen(told, "rb") as pipe, self.log_file.open("ab") as log:
            try:
                subprocess.run(
                    ["setsid", "--fork", *self.under, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(tell,),
                    cwd="/",
                    env={**os.environ, **(env or {})},
                    check=True,
                )
            finally:
                os.close(tell)
            said = pipe.read()
        error = json.loads(said)["error"] if said else "the daemon died before it mounted"
        assert error is None, f"{error}\n{self.log()}"
        self.pids.append(self.status()["pid"])

    def umount(self) -> None:
        if is_served(self.volume):
            pid = self.status()["pid"]
            ask(self.volume, "umount")
            assert self.open_below(pid) == []
        else:
            self.keigo("umount", self.directory)
        assert not self.is_mounted()

    def open_below(self, pid: int) -> list[str]:
        """Files in place that a daemon has open, if it has not ended: the next mount would refuse for them."""
        found = []
        try:
            for number in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{number}")
                if path.startswith(f"{self.directory}/") and os.path.isfile(path):
                    found.append(path)
        except (FileNotFoundError, ProcessLookupError):
            pass
        return found

    def is_mounted(self) -> bool:
        return mounts.mount_at(str(self.directory)) is not None

    def kill(self) -> None:
        """kill -9 the daemon and wait until it is gone."""
        os.kill(self.pids[-1], signal.SIGKILL)
        self.wait_dead()

    def wait_dead(self) -> None:
        fd = None
        try:
            fd = os.pidfd_open(self.pids[-1])
        except ProcessLookupError:
            return
        import select

        try:
            ready, _, _ = select.select([fd], [], [], 60)
            assert ready, "the daemon did not die"
        finally:
            os.close(fd)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(self.volume, "status")
        return found

    def ls(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask(self.volume, "ls")
        return found

    def tier_of(self, name: str) -> str:
        """The tier that `ls` says, which must be where the file is, and nowhere else."""
        (row,) = [row for row in self.ls() if row["name"] == name]
        where = [tier for tier, path in self.tiers.items() if tier != "slow" and (path / name).exists()]
        assert where == ([] if row["tier"] == "slow" else [row["tier"]])
        return str(row["tier"])

    def wait_closed(self) -> None:
        """Until the daemon has heard that every file is closed: close(2) returns before it does."""
        deadline = time.monotonic() + 60
        while (left := self.status()["open_files"]) != 0:
            assert time.monotonic() < deadline, f"{left} file(s) are still open"
            time.sleep(0.001)

    def used_tiers(self) -> set[str]:
        return {row["tier"] for row in self.ls() if row["size"]}

    def destroy_daemon(self) -> None:
        """Kill what may be left of it: a file of a stopped daemon cannot even be closed."""
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def destroy(self) -> None:
        self.destroy_daemon()
        for _ in range(3):
            if not self.is_mounted():
                break
            # Cleaning up after a failed test is the one place for a lazy unmount.
            ctypes.CDLL(None).umount2(os.fsencode(self.directory), 2)
        socket_path(self.volume).unlink(missing_ok=True)
        for path in {self.base, *(tier.parent for tier in self.tiers.values())}:
            shutil.rmtree(path, ignore_errors=True)


def write_config(
    path: Path,
    volume: str,
    tiers: Mapping[str, Path],
    capacity: Mapping[str, int | str],
    levels: str = LEVELS,
    extra: str = "",
) -> None:
    lines = [f"volume: {volume}", "tiers:"]
    for name, where in tiers.items():
        place = "in_place: true" if name == "slow" else f"path: {where}"
        room = f", capacity: {capacity[name]}" if name in capacity else ""
        lines.append(f"  - {{name: {name}, {place}{room}}}")
    lines.append(f"placement: {{policy: levels, levels: {levels}}}")
    path.write_text("\n".join(lines) + "\n" + extra)


def new_world(
    base: Path,
    driver: str,
    capacity: Mapping[str, int | str] | None = None,
    levels: str = LEVELS,
    extra: str = "",
    names: Sequence[str] = ("fast", "mid", "slow"),
) -> World:
    """Make the directories and the configuration of a world below `base`; end it with `destroy`."""
    base.mkdir()
    places = {"mid": base / "mid", "slow": base / "db"}
    if "fast" in names:
        places["fast"] = Path(tempfile.mkdtemp(prefix="keigo-test-", dir="/dev/shm")) / "fast"
    for name, place in places.items():
        place.mkdir(mode=0o755 if name == "slow" else 0o700)
    volume = f"t-{uuid.uuid4().hex[:12]}"
    config = base / "devices.yaml"
    tiers = {name: places[name] for name in names}
    write_config(config, volume, tiers, capacity or {"fast": "64MiB", "mid": "256MiB"}, levels, extra)
    return World(base, places["slow"], tiers, volume, config, driver)


@pytest.fixture(params=["pyfuse3", "kernel"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path, driver: str) -> Iterator[MakeWorld]:
    """Make worlds: `make_world(capacity={"fast": "8MiB"}, extra="pins: ...")`."""
    made: list[World] = []

    def make(
        capacity: Mapping[str, int | str] | None = None,
        levels: str = LEVELS,
        extra: str = "",
        names: Sequence[str] = ("fast", "mid", "slow"),
    ) -> World:
        base = tmp_path / f"w{len(made)}"
        made.append(new_world(base, driver, capacity, levels, extra, names))
        return made[-1]

    yield make
    for world in made:
        world.destroy()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A world with three tiers, not mounted."""
    return make_world()


@pytest.fixture
def mounted(world: World) -> World:
    """A mounted world with three tiers."""
    world.mount()
    return world
