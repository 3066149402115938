"""Comparisons of setups: plans, order, real mounts, what is left behind, going on after an interruption."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keigo import mounts
from keigo.config import POLICIES
from keigo.control import ask, volume_of
from keigo.errors import KeigoError
from tests.background import sync_at
from workloads.compare import interleave, plan, results
from workloads.compare.hierarchy import TestbedPlan, identity, prepared
from workloads.compare.summary import document_of
from workloads.compare.tools import ROOT, CompareError, environment, keigo
from workloads.compare.traffic import Recorder, counters_of

TIERS = "tiers: [{name: fast, path: fast, capacity: 8MiB}, {name: slow, path: slow}]\n"
WORKLOAD = "workload: {name: ycsb-a, records: 400, operations: 800, value_size: 200, verify: true}\n"
ENGINE = "engine: {name: rocksdb, write_buffer: 64KiB, dynamic_levels: false, compression: none}\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with two tiers; nothing is mounted below it at the end."""
    for name in ("fast", "slow"):
        (tmp_path / name).mkdir()
    yield tmp_path
    for mount in reversed(mounts.mounts_below(str(tmp_path))):  # of a failed test
        if mount.volume is not None:
            keigo("umount", mount.path)
        else:
            mounts.unmount(mount.path)


def write(place: Path, text: str) -> Path:
    path = place / "plan.yaml"
    path.write_text(text)
    return path


def bench(place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keigo", "bench", "compare", *map(str, arguments)],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def assert_clean(place: Path) -> None:
    """Nothing is mounted, and the tiers hold nothing."""
    assert mounts.mounts_below(str(place)) == []
    for name in ("fast", "slow"):
        assert os.listdir(place / name) == []


class Quiet:
    """A Watcher that remembers the order of runs."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.runs: list[tuple[int, str, str]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, run: str, number: int, of: int) -> None:
        del run, number, of

    def watch(self, event: object) -> None:
        del event

    def end(self, run: results.Run) -> None:
        self.runs.append((run.repetition, run.workload, run.setup))


def test_every_kind_of_setup_runs_or_says_why(place: Path) -> None:
    setups = (
        "setups: [all-slow, all-fast, db_paths, mergerfs, {directory: .}, {keigo: levels, driver: kernel},\n"
        "  {keigo: levels, driver: pyfuse3}, {keigo: levels, cache: true}, {keigo: nonesuch}]\nrepeats: 1\n"
    )
    path = write(place, TIERS + WORKLOAD + ENGINE + setups)
    done = bench(place, path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.load(place / "plan.json")
    ran = ["all-slow", "all-fast", "db_paths", "mergerfs", "plain", "keigo-levels-kernel", "keigo-levels-pyfuse3"]
    assert [run.setup for run in found.runs] == ran
    for run in found.runs:
        assert run.error is None
        assert run.result is not None
        assert run.result.verification is not None
        assert run.result.verification.complete
        assert [phase.operations for phase in run.result.phases] == [400, 800]
    by_name = {run.setup: run.result for run in found.runs if run.result is not None}
    kernel, pyfuse3 = (by_name[f"keigo-levels-{driver}"].mount for driver in ("kernel", "pyfuse3"))
    assert kernel is not None
    assert pyfuse3 is not None
    assert (kernel.driver, pyfuse3.driver) == ("kernel", "pyfuse3")
    assert by_name["mergerfs"].filesystem == "fuse.mergerfs"
    fast = [Path(item["path"]).relative_to(place).parts[0] for item in by_name["db_paths"].options["db_paths"]]
    assert fast == ["fast", "slow"]
    why = {setup.name: setup.unable for setup in found.setups if setup.unable is not None}
    assert why == {
        "keigo-levels-cache": "this version of Keigo has no cache",
        "keigo-nonesuch": f"this version of Keigo has no policy nonesuch (it has {', '.join(POLICIES)})",
    }
    assert "keigo-levels-cache did not run: this version of Keigo has no cache" in done.stdout
    assert (place / "plan.html").read_text().count("this version of Keigo has no cache") == 1
    assert_clean(place)
    assert sorted(os.listdir(place)) == ["fast", "plan.html", "plan.json", "plan.yaml", "slow"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs(place: Path, policy: str) -> None:
    path = write(place, TIERS + WORKLOAD + ENGINE + f"setups: [{{keigo: {policy}}}]\nrepeats: 1\n")
    found = interleave.compare(plan.load(path), place / "out.json", Quiet(), resume=False)
    (run,) = found.runs
    assert (run.setup, run.error) == (f"keigo-{policy}", None)
    assert run.result is not None
    assert run.result.mount is not None
    assert run.result.mount.policy == policy
    assert_clean(place)


def test_the_daemon_finds_the_profile_of_a_setup(place: Path) -> None:
    (place / "my.json").write_text("measured by hand")
    setups = "setups: [{keigo: cost, profile: my.json}, {keigo: cost, profile: absent.json, name: absent}]\n"
    wanted = plan.load(write(place, TIERS + WORKLOAD + setups))
    with_profile, without = wanted.setups
    assert with_profile.unable(wanted.tiers, "rocksdb") is None
    assert "profile my.json" in with_profile.about(wanted.tiers)
    assert without.unable(wanted.tiers, "rocksdb") == f"{place}/absent.json: no such file"
    with (
        prepared(wanted.tiers, None, wanted.source, print) as hierarchy,
        with_profile.up(hierarchy) as up,
    ):
        found = ask(volume_of(up.directory), "status")["profile"]
        assert Path(found["path"]).read_text() == "measured by hand"
        assert found["remarks"] != []
    with (
        prepared(wanted.tiers, None, wanted.source, print) as hierarchy,
        pytest.raises(CompareError, match="No such file"),
        without.up(hierarchy),
    ):
        pass
    assert_clean(place)


def test_db_bench_runs_on_every_setup_that_it_can(place: Path) -> None:
    text = (
        TIERS
        + "workloads:\n"
        + "  - {name: db_bench, benchmark: readrandom, load: fillrandom, records: 3000, operations: 2000, threads: 2}\n"
        + "  - {name: db_bench, benchmark: fillsync, records: 500, operations: 500}\n"
        + "engine: {name: db_bench, write_buffer: 128KiB, compression: none}\n"
        + "setups: [db_paths, {keigo: levels}]\nrepeats: 1\n"
    )
    done = bench(place, write(place, text))
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.load(place / "plan.json")
    assert [run.setup for run in found.runs] == ["keigo-levels"] * 2
    assert "db_paths did not run: db_bench has no db_paths" in done.stdout
    for run in found.runs[:1]:
        assert run.result is not None
        load, phase = run.result.phases
        assert (load.operations, phase.operations) == (3000, 2000)
        latency = phase.latency["read"]
        assert latency.count == sum(latency.counts) == 2000
        assert latency.values == sorted(latency.values)
        # What is drawn from the buckets and what db_bench says differ by the width of a bucket's sixteenth at most.
        drawn = document_of(found).sections[0].setups[1].runs[0].latencies["read"].at(50.0)
        assert drawn == pytest.approx(found.runs[0].result.phases[1].latency["read"].percentiles["50"] / 1e3, rel=0.1)  # type: ignore[union-attr]
    assert [phase.name for phase in found.runs[1].result.phases] == ["run"]  # type: ignore[union-attr]
    assert_clean(place)


def test_repetitions_are_interleaved_and_each_begins_with_another_setup(place: Path) -> None:
    setups = "setups: [all-slow, all-fast, {tier: slow, name: third}]\nrepeats: 4\n"
    wanted = plan.load(write(place, TIERS + WORKLOAD + setups))
    order = [(repetition, setup.name) for repetition, _, setup in interleave.order(wanted, wanted.setups)]
    names = ["all-slow", "all-fast", "third"]
    assert [[name for at, name in order if at == repetition] for repetition in range(4)] == [
        names,
        names[1:] + names[:1],
        names[2:] + names[:2],
        names,
    ]


def test_what_is_missing_is_added_and_nothing_runs_twice(place: Path) -> None:
    path = write(place, TIERS + WORKLOAD + "setups: [all-slow, all-fast]\nrepeats: 2\n")
    wanted, file = plan.load(path), place / "out.json"
    first = Quiet()
    interleave.compare(wanted, file, first, resume=False, only=("all-fast",))
    assert [setup for _, _, setup in first.runs] == ["all-fast", "all-fast"]
    with pytest.raises(CompareError, match="is there already: --resume"):
        interleave.compare(wanted, file, Quiet(), resume=False)
    rest = Quiet()
    found = interleave.compare(wanted, file, rest, resume=True)
    assert [setup for _, _, setup in rest.runs] == ["all-slow", "all-slow"]
    assert results.load(file) == found
    (section,) = document_of(found).sections
    assert {name: sorted(rates) for name, rates in section.repetitions.items()} == {
        "all-slow": [0, 1],
        "all-fast": [0, 1],
    }
    again = Quiet()
    assert interleave.compare(wanted, file, again, resume=True).runs == found.runs
    assert again.runs == []
    other = plan.load(
        write(place, TIERS + WORKLOAD.replace("800", "900") + "setups: [all-slow, all-fast]\nrepeats: 2\n")
    )
    with pytest.raises(CompareError, match="is of another plan"):
        interleave.compare(other, file, Quiet(), resume=True)


def test_a_setup_that_fails_is_told_and_the_others_run(place: Path) -> None:
    # LevelDB cannot set this option: every run is refused by the engine, as one with a full device would be.
    text = TIERS + WORKLOAD + "engine: {name: leveldb, subcompactions: 2}\nsetups: [all-slow]\nrepeats: 2\n"
    done = bench(place, write(place, text))
    assert done.returncode == 1
    assert "leveldb cannot set subcompactions" in done.stderr
    found = results.load(place / "plan.json")
    assert len(found.runs) == 1, "a setup that failed is not tried again"
    assert "all-slow did not run: leveldb cannot set" in done.stdout
    assert_clean(place)


def test_a_full_device_fails_its_own_run_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The WAL has an error, or a flush: then RocksDB stops all writes and waits for room that never comes."""
    monkeypatch.setattr("workloads.compare.run.STALLED_SECONDS", 3)
    device = place / "fast"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", device], check=True)
    workload = WORKLOAD.replace("400, op", "4000, op")
    try:
        found = interleave.compare(
            plan.load(write(place, TIERS + workload + ENGINE + "setups: [all-fast, all-slow]\nrepeats: 1\n")),
            place / "out.json",
            Quiet(),
            resume=False,
        )
        assert os.listdir(device) == []
    finally:
        subprocess.run(["umount", device], check=True)
    failed, good = found.runs
    assert failed.error is not None
    assert "IO error" in failed.error or "no operation ended for 3 s" in failed.error
    assert good.error is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_leaves_results_and_no_mounts(place: Path, number: int) -> None:
    """Interrupted while the second run, on a mount, does its operations."""
    slow = WORKLOAD.replace("operations: 800", "seconds: 120").replace(", verify: true", "")
    setups = "setups: [{keigo: levels, driver: kernel}, {keigo: levels, driver: pyfuse3}]\nrepeats: 1\n"
    path = write(place, TIERS + slow + ENGINE + setups)
    process = subprocess.Popen(
        [sys.executable, "-m", "keigo", "bench", "compare", path],
        cwd=place,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        marker = place / "slow" / f"keigo-bench-{identity(path)}" / "db" / "CURRENT"
        wait_for(marker, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "interrupted; --resume goes on" in said
    assert results.load(place / "plan.json").runs == []
    assert_clean(place)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there, or the process is over."""
    ended = os.pidfd_open(process.pid)
    try:
        for _ in range(600):
            if path.exists():
                return
            assert not select.select([ended], [], [], 0.1)[0], "it ended before"
    finally:
        os.close(ended)
    raise AssertionError(f"{path} did not come")


def test_what_a_killed_comparison_left_goes_when_the_next_begins(place: Path) -> None:
    path = write(place, TIERS + WORKLOAD + ENGINE + "setups: [{keigo: levels}]\nrepeats: 1\n")
    wanted = plan.load(path)
    script = (
        "import os, sys; from pathlib import Path; from workloads.compare import plan; "
        "from workloads.compare.hierarchy import prepared\n"
        "wanted = plan.load(Path(sys.argv[1]))\n"
        "with prepared(wanted.tiers, None, wanted.source, print) as tiers, wanted.setups[0].up(tiers) as place:\n"
        "    (place.directory / 'file').write_text('left')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert mounts.mounts_below(str(place))
    with prepared(wanted.tiers, None, wanted.source, print) as hierarchy:
        assert mounts.mounts_below(str(place)) == []
        assert [os.listdir(tier.directory) for tier in hierarchy.tiers] == [[], []]
    assert_clean(place)


def test_two_comparisons_by_one_plan_do_not_disturb_each_other(place: Path) -> None:
    wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\n"))
    with prepared(wanted.tiers, None, wanted.source, print) as hierarchy:
        (hierarchy.slowest.directory / "file").touch()
        with (
            pytest.raises(CompareError, match="another comparison by this plan is running"),
            prepared(wanted.tiers, None, wanted.source, print),
        ):
            pass
        assert (hierarchy.slowest.directory / "file").exists()


def test_a_tier_of_a_volume_is_refused(place: Path) -> None:
    (place / "slow/.keigo").mkdir()
    wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\n"))
    with pytest.raises(CompareError, match="is a tier of a Keigo volume"):
        interleave.compare(wanted, place / "out.json", Quiet(), resume=False)


def test_devices_that_count_are_read_for_each_tier(place: Path) -> None:
    """Two tiers on loop devices; what is written to one is counted for it alone."""
    loops = [loop_device(place, name) for name in ("fast", "slow")]
    try:
        wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\n"))
        with prepared(wanted.tiers, None, wanted.source, print) as hierarchy:
            counters = counters_of(hierarchy.tiers)
            assert counters is not None
            recorder = Recorder(hierarchy.tiers, counters)
            for tier in hierarchy.tiers:
                sync_at(tier.directory)
            recorder.note()
            with (hierarchy.fastest.directory / "file").open("wb") as file:
                file.write(os.urandom(4 << 20))
                file.flush()
                os.fsync(file.fileno())
            recorder.note()
            moved = recorder.moved()
        assert 4 << 20 <= moved.written_bytes["fast"][-1] < 6 << 20
        assert moved.written_bytes["slow"][-1] < 1 << 20
        assert moved.used["fast"][-1] >= 4 << 20
        shared = place / "fast/a", place / "fast/b"
        for path in shared:
            path.mkdir()
        one = TIERS.replace("path: fast", "path: fast/a").replace("path: slow", "path: fast/b")
        wanted = plan.load(write(place, one + WORKLOAD + "setups: [all-slow]\n"))
        with prepared(wanted.tiers, None, wanted.source, print) as hierarchy:
            assert counters_of(hierarchy.tiers) is None, "one device cannot tell them apart"
    finally:
        for name, loop in zip(("fast", "slow"), loops, strict=True):
            subprocess.run(["umount", place / name], check=True)
            subprocess.run(["losetup", "-d", loop], check=True)


def loop_device(place: Path, name: str) -> str:
    """An ext4 on a loop device, mounted at a tier."""
    image = place / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    done = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
    loop = done.stdout.strip()
    subprocess.run(["mount", loop, place / name], check=True)
    shutil.rmtree(place / name / "lost+found")
    return loop


GOOD = TIERS + WORKLOAD + ENGINE + "setups: [all-slow, {keigo: levels}]\nrepeats: 2\n"
MISTAKES = [
    ("repeats: 2", "repeats: 0", "5: repeats: must be a whole number from 1 on, not 0"),
    ("repeats: 2", "repeat: 2", "5: repeat: unknown key (did you mean repeats?)"),
    ("repeats: 2", "base: fastest", "5: base: 'fastest' is none of all-slow, keigo-levels"),
    ("all-slow, ", "all-slow, all-slow, ", "4: setups[1]: 'all-slow' is the name of two setups: give one a name"),
    ("keigo: levels", "tier: middle", "4: setups[1]: tier: 'middle' is none of fast, slow"),
    ("keigo: levels", "keigo: levels, driver: fast", "4: setups[1]: driver: 'fast' is none of auto, kernel, pyfuse3"),
    ("keigo: levels", "name: x", "must have one of tier, db_paths, mergerfs, directory, keigo, not none"),
    ("keigo: levels", "keigo: cost, levels: {fast: [0]}", "4: setups[1]: levels: is for policy levels only"),
    ("keigo: levels", "keigo: cost, profile: 1", "4: setups[1]: profile: must be a text, not 1"),
    ("{keigo: levels}", "keigo", "4: setups[1]: 'keigo' is none of all-slow"),
    ("ycsb-a", "ycsb-z", "2: workload: name: 'ycsb-z' is none of ycsb-a"),
    ("records: 400", "records: many", "2: workload: records: must be a whole number from 1 on, not 'many'"),
    ("records: 400, ", "", "2: workload: records: is missing"),
    ("value_size: 200", "value_size: 2xB", "2: workload: value_size: '2xB' is not a size"),
    ("value_size: 200", "distribution: odd", "2: workload: distribution 'odd': must be one of"),
    ("verify: true", "verify: maybe", "2: workload: verify: must be true or false, not 'maybe'"),
    ("verify: true", "seconds: 5", "2: workload: seconds: the run is told operations, too"),
    ("dynamic_levels: false", "dynamic: false", "3: engine: dynamic: unknown key"),
    ("compression: none", "compression: zip", "3: engine: compression: 'zip' is none of none, snappy"),
    ("rocksdb, ", "db_bench, ", "3: engine: the engine db_bench and workloads of that name go together"),
    ("ycsb-a", "db_bench", "2: workload: benchmark: is missing"),
    ("ycsb-a, records: 400", "db_bench, benchmark: readrandom, records: 9", "verify: db_bench has no such thing"),
    ("capacity: 8MiB", "size: 8MiB", "1: tiers[0]: size: unknown key"),
    ("name: slow", "name: fast", "1: tiers[1]: name: 'fast' is the name of two tiers"),
    (", path: slow", "", "slow: needs a path, or the plan a testbed"),
    ("repeats: 2", "testbed: {dilate: 20}", "has a path, and the plan a testbed"),
    ("repeats: 2", "testbed: [", "is not YAML"),
]


@pytest.mark.parametrize(("good", "bad", "told"), MISTAKES, ids=[told[:40] for _, _, told in MISTAKES])
def test_a_mistake_in_a_plan_is_one_line_that_says_where(place: Path, good: str, bad: str, told: str) -> None:
    path = write(place, GOOD)
    plan.load(path)
    path = write(place, GOOD.replace(good, bad))
    with pytest.raises(KeigoError) as error:
        plan.load(path)
    text = str(error.value)
    assert text.startswith(f"{path}:")
    assert told in text
    assert "\n" not in text


def test_tiers_of_a_devices_yaml(place: Path) -> None:
    (place / "devices.yaml").write_text(
        "volume: v\ntiers:\n  - {name: fast, path: fast, capacity: 8MiB}\n  - {name: slow, in_place: true}\n"
    )
    rest = WORKLOAD + "setups: [all-slow]\n"
    wanted = plan.load(write(place, "devices: devices.yaml\ndirectory: slow\n" + rest))
    assert [(tier.name, tier.path, tier.capacity) for tier in wanted.tiers] == [
        ("fast", place / "fast", 8 << 20),
        ("slow", place / "slow", None),
    ]
    with pytest.raises(KeigoError, match="its tier slow is in place"):
        plan.load(write(place, "devices: devices.yaml\n" + rest))


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200) | st.from_regex(r"(\w+: [\[{]?\w+[\]}]?\n)+"))
def test_foreign_text_is_a_plan_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "foreign.yaml"
    path.write_text(text)
    with pytest.raises(KeigoError) as error:
        plan.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "workloads/plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans_are_good(path: Path) -> None:
    wanted = plan.load(path)
    assert isinstance(wanted.testbed, TestbedPlan)
    names = [setup.name for setup in wanted.setups]
    assert wanted.base in names
    for setup in wanted.setups:
        assert setup.about(wanted.tiers)


def test_a_file_that_is_no_comparison_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("", "{}", "[1", json.dumps({"format": 99})):
        path.write_text(text)
        with pytest.raises(CompareError, match="not a comparison of keigo bench"):
            results.load(path)


def test_results_survive_their_file(place: Path) -> None:
    wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\nrepeats: 1\n"))
    found = interleave.compare(wanted, place / "out.json", Quiet(), resume=False)
    decoded: dict[str, Any] = msgspec.json.decode((place / "out.json").read_bytes())
    assert decoded["runs"][0]["setup"] == "all-slow"
    assert results.load(place / "out.json") == found


def test_a_run_that_gets_nowhere_is_given_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says that its load began, and then nothing."""
    script = place / "stuck.py"
    script.write_text(
        "import signal, sys, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        'print(\'{"type":"began","what":"load","at":0}\', flush=True)\n'
        "signal.pause()\n"
    )
    monkeypatch.setattr("workloads.compare.run.module", lambda *_: [sys.executable, str(script)])
    monkeypatch.setattr("workloads.compare.run.STALLED_SECONDS", 1)
    wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\n"))
    (run,) = interleave.compare(wanted, place / "out.json", Quiet(), resume=False).runs
    assert run.error == "no operation ended for 1 s: given up (is the device full?)"
    assert_clean(place)


def test_a_memory_limit_that_cannot_be_had_is_told_before_anything_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int, pids: object) -> None:
        del pids
        raise CompareError(f"--memory: {size} cannot be had here")

    monkeypatch.setattr("workloads.compare.interleave.memory_limit", refuse)
    wanted = plan.load(write(place, TIERS + WORKLOAD + "setups: [all-slow]\nmemory: 64MiB\n"))
    watcher = Quiet()
    with pytest.raises(CompareError, match="67108864 cannot be had here"):
        interleave.compare(wanted, place / "out.json", watcher, resume=False)
    assert watcher.runs == []
    assert_clean(place)
