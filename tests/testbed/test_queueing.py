"""The server's arithmetic against a model of it that is written for reading: `device_server --simulate`."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import server
from testbed.parameters import Device, Head, Way

MIB = 1 << 20


@dataclass(frozen=True)
class Request:
    at: float
    kind: str
    offset: int = 0
    size: int = 0


@dataclass
class Model:
    """A device as `queueing.h` describes it, with plain lists."""

    device: Device
    free: dict[str, list[float]] = field(default_factory=dict)
    bus: dict[str, float] = field(default_factory=lambda: {"r": 0.0, "w": 0.0})
    done: dict[str, list[float]] = field(default_factory=lambda: {"r": [], "w": []})
    head: int = 0
    head_free: float = 0.0
    last_write: float = 0.0

    def __post_init__(self) -> None:
        self.free = {"r": [0.0] * self.device.read.slots, "w": [0.0] * self.device.write.slots}

    def serve(self, request: Request) -> float:
        if request.kind == "f":
            return max(request.at, self.last_write) + self.device.flush_us * 1e3
        way = self.device.read if request.kind == "r" else self.device.write
        done = self._with_head(way, request) if self.device.head else self._in_a_slot(way, request)
        if request.kind == "w":
            self.last_write = max(self.last_write, done)
        return done

    def _with_head(self, way: Way, request: Request) -> float:
        assert self.device.head is not None
        done = max(request.at, self.head_free) + way.base_us * 1e3
        if request.offset != self.head:
            adjacent, full = self.device.head.adjacent_us * 1e3, self.device.head.full_us * 1e3
            share = math.sqrt(abs(request.offset - self.head) / self.device.size)
            done += adjacent + (full - adjacent) * share + 30e9 / self.device.head.rpm
        self.head = request.offset + request.size
        self.head_free = done + request.size * (1e9 / way.bandwidth)
        return self.head_free

    def _in_a_slot(self, way: Way, request: Request) -> float:
        def under_way(kind: str) -> int:
            return sum(done > request.at for done in self.done[kind])

        factor = 1 + way.decline * max(0, under_way(request.kind) + 1 - way.slots) / way.slots
        if request.kind == "r":
            slots = self.device.write.slots
            factor *= 1 + self.device.interference * min(under_way("w"), slots) / slots
        slots_free = self.free[request.kind]
        first = slots_free.index(min(slots_free))
        slots_free[first] = ready = max(request.at, slots_free[first]) + factor * (way.base_us * 1e3)
        done = max(ready, self.bus[request.kind]) + factor * request.size * (1e9 / way.bandwidth)
        self.bus[request.kind] = done
        self.done[request.kind].append(done)
        return done


def simulate(device: Device, requests: Sequence[Request]) -> list[float]:
    lines = "".join(f"{r.at!r} {r.kind} {r.offset} {r.size}\n" for r in requests)
    command = [str(server.build()), "--simulate", *device.server_arguments()]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


ways = st.builds(
    Way,
    base_us=st.integers(1, 1000).map(float),
    slots=st.integers(1, 8),
    bandwidth=st.integers(1, 5000).map(lambda mb: mb * 10**6),
    decline=st.sampled_from([0.0, 0.25, 1.0]),
)
single_ways = st.builds(Way, base_us=st.just(5.0), slots=st.just(1), bandwidth=st.just(10**8))
devices = st.one_of(
    st.builds(
        Device,
        about=st.just("slots"),
        size=st.just(64 * MIB),
        read=ways,
        write=ways,
        interference=st.sampled_from([0.0, 0.5, 2.0]),
        flush_us=st.sampled_from([0.0, 700.0]),
    ),
    st.builds(
        Device,
        about=st.just("head"),
        size=st.just(64 * MIB),
        read=single_ways,
        write=single_ways,
        head=st.builds(Head, adjacent_us=st.just(100.0), full_us=st.just(900.0), rpm=st.just(7200.0)),
    ),
)
requests = st.lists(
    st.builds(
        Request,
        at=st.integers(0, 3_000_000).map(float),
        kind=st.sampled_from("rrwwf"),
        offset=st.integers(0, 15).map(lambda block: block * 65536),
        size=st.sampled_from([4096, 65536, 1 << 20]),
    ),
    max_size=40,
).map(lambda found: sorted(found, key=lambda request: request.at))


@given(devices, requests)
def test_requests_are_done_when_the_model_says(device: Device, requests: list[Request]) -> None:
    model = Model(device)
    assert simulate(device, requests) == pytest.approx([model.serve(request) for request in requests], rel=1e-12)


def device(**changes: object) -> Device:
    fields: dict[str, object] = {
        "about": "a device with round figures",
        "size": 64 * MIB,
        "read": Way(base_us=100, slots=2, bandwidth=1_000_000_000),
        "write": Way(base_us=10, slots=1, bandwidth=1_000_000_000),
    }
    return Device(**{**fields, **changes})  # type: ignore[arg-type]


def test_slots_then_the_bus() -> None:
    """Two slots of 100 us, 1 us of bus for each 1000 bytes: the third read waits for a slot, the second for the bus."""
    assert simulate(device(), [Request(0, "r", 0, 1000)] * 3) == [101_000, 102_000, 201_000]


def test_the_bus_is_shared_by_one_direction_only() -> None:
    found = simulate(device(), [Request(0, "w", 0, 1_000_000), Request(0, "r", 0, 1000)])
    assert found == [1_010_000, 101_000]


def test_reads_slow_down_beside_writes() -> None:
    found = simulate(device(interference=1.0), [Request(0, "w", 0, 1000), Request(0, "r", 0, 1000)])
    assert found[1] == 2 * 101_000


def test_more_than_the_slots_slow_each_other_down() -> None:
    declining = device(write=Way(base_us=10, slots=1, bandwidth=1_000_000_000, decline=0.5))
    assert simulate(declining, [Request(0, "w", 0, 0)] * 2) == [10_000, 10_000 + 15_000]


def test_a_flush_waits_for_the_writes_before_it() -> None:
    found = simulate(device(flush_us=7.0), [Request(0, "w", 0, 1000), Request(0, "f"), Request(20_000, "f")])
    assert found == [11_000, 18_000, 27_000]


def test_a_head_seeks_unless_the_request_follows_on() -> None:
    one = Way(base_us=1, slots=1, bandwidth=1_000_000_000)
    disk = device(read=one, write=one, head=Head(adjacent_us=100, full_us=1100, rpm=60_000))
    quarter = 16 * MIB
    found = simulate(disk, [Request(0, "r", 0, 4000), Request(0, "w", 4000, 4000), Request(0, "r", quarter + 8000, 0)])
    # base and transfer; the same; base, the seek over a quarter (half of the root's range), half of a 1 ms rotation
    assert found == [5_000, 10_000, 10_000 + 1_000 + 600_000 + 500_000]


@pytest.mark.parametrize("wrong", ["size=0", "read_slots=0", "read_slots=1.5", "write_base=-1", "flush=x", "speed=1"])
def test_a_parameter_that_is_none_is_refused(wrong: str) -> None:
    command = [str(server.build()), "--simulate", *device().server_arguments(), wrong]
    done = subprocess.run(command, input="", capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
