"""A db_bench whose compactions cannot keep up: its writers wait, Keigo knows it, and moves nothing meanwhile but what
makes room."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import MakeWorld, World

pytestmark = pytest.mark.skipif(
    shutil.which("db_bench") is None, reason="db_bench (Debian: rocksdb-tools) is not installed"
)

# Compactions may write 2 MiB/s, flushes have what they ask for; so level 0 fills up, and is empty some seconds later.
STALLING = (
    "--num=10000",
    "--value_size=400",
    "--write_buffer_size=262144",
    "--target_file_size_base=524288",
    "--max_bytes_for_level_base=1048576",
    "--level0_file_num_compaction_trigger=2",
    "--level0_slowdown_writes_trigger=4",
    "--level0_stop_writes_trigger=5",
    "--rate_limiter_bytes_per_sec=2000000",
    "--compression_type=none",
    "--benchmarks=fillrandom,waitforcompaction",
)


def wait(so: Callable[[], object], world: World) -> None:
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline, (world.status(), world.ls())
        time.sleep(0.02)


def test_nothing_is_copied_while_writers_wait(make_world: MakeWorld) -> None:
    # Its copy takes longer than the next wait of the writers is away.
    world = make_world({"fast": "256MiB", "mid": "256MiB"}, extra="copy_limit: 1MiB/s\n")
    (world.directory / "old").mkdir()
    (world.directory / "old" / "000001.sst").write_bytes(b"x" * (4 << 20))
    world.mount()

    def status() -> Any:
        return world.status()

    command = ["db_bench", f"--db={world.directory}/kv", *STALLING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as bench:
        try:
            wait(lambda: status()["placement"]["pressure"]["stalled"] or bench.poll() is not None, world)
            assert bench.poll() is None, "its writers never waited"
            world.keigo("pin", world.directory, "old/*", "mid")
            paused: list[str] = []

            def is_paused() -> bool:
                paused.extend(filter(None, [status()["migrations"]["paused"]]))
                return bool(paused) or bench.poll() is not None

            wait(is_paused, world)
            assert paused[0] == "writers wait for the database's own background work"
            out, _ = bench.communicate(timeout=100)
        finally:
            bench.kill()
    assert bench.returncode == 0, out
    assert "fillrandom" in out
    wait(lambda: not status()["placement"]["pressure"]["stalled"], world)
    wait(lambda: {row["name"]: row["tier"] for row in world.ls()}["old/000001.sst"] == "mid", world)
