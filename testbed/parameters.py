"""What a device is: its parameters, from a YAML file whose figures are those of the real device, and their dilation.

    about: Samsung SSD 970 EVO Plus 1 TB
    size: 3GiB
    read:  {base_us: 51.5, slots: 32, bandwidth: 3500MB/s}
    write: {base_us: 15.4, slots: 9, bandwidth: 3300MB/s, decline: 0.4}
    interference: 1.0
    flush_us: 0
    head: {adjacent_us: 600, full_us: 15000, rpm: 7200}      # a disk that turns; its slots are 1

The meaning of each is the arithmetic at the top of `queueing.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from keigo.errors import KeigoError
from keigo.units import parse_rate, parse_size

SHIPPED: Final = Path(__file__).parent / "devices"
LEAST_SIZE: Final = 16 << 20
"""Bytes; a smaller ext4 has no journal."""
_MIB: Final = 1 << 20

Direction = Literal["read", "write"]
# The bounds also keep infinity out, which YAML can write.
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class DeviceFileError(KeigoError):
    """A device file is missing or wrong; one line with file and value."""


class Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One direction of a device."""

    base_us: Positive
    slots: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    bandwidth: int
    """Bytes per second; a rate like `3500MB/s` in the file."""
    decline: NotNegative = 0.0


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What moves in a disk that turns."""

    adjacent_us: NotNegative
    full_us: Positive
    rpm: Positive


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device as its file tells it, or dilated."""

    about: str
    size: int
    """Bytes of the image; a size like `3GiB` in the file."""
    read: Way
    write: Way
    interference: NotNegative = 0.0
    flush_us: NotNegative = 0.0
    head: Head | None = None

    def way(self, direction: Direction) -> Way:
        """The parameters of one direction."""
        return self.read if direction == "read" else self.write

    def dilated(self, factor: float) -> Device:
        """The same device `factor` times slower."""

        def slower(way: Way) -> Way:
            return msgspec.structs.replace(
                way, base_us=way.base_us * factor, bandwidth=max(1, round(way.bandwidth / factor))
            )

        head = self.head and Head(self.head.adjacent_us * factor, self.head.full_us * factor, self.head.rpm / factor)
        return msgspec.structs.replace(
            self, read=slower(self.read), write=slower(self.write), flush_us=self.flush_us * factor, head=head
        )

    def server_arguments(self) -> list[str]:
        """The parameters as `device_server` takes them: nanoseconds, and nanoseconds per byte."""
        return [f"{name}={value!r}" for name, value in self._server_parameters()]

    def _server_parameters(self) -> Iterator[tuple[str, float]]:
        yield "size", self.size
        for name, way in (("read", self.read), ("write", self.write)):
            yield f"{name}_base", way.base_us * 1e3
            yield f"{name}_slots", way.slots
            yield f"{name}_per_byte", 1e9 / way.bandwidth
            yield f"{name}_decline", way.decline
        yield "interference", self.interference
        yield "flush", self.flush_us * 1e3
        if self.head is not None:
            yield "seek_adjacent", self.head.adjacent_us * 1e3
            yield "seek_full", self.head.full_us * 1e3
            yield "half_rotation", 30e9 / self.head.rpm

    def expected_us(self, direction: Direction, k: int, block_bytes: int) -> float:
        """Mean time of a random request of `block_bytes` among `k` of one direction in a closed loop, in microseconds.

            max(base + x/B, k base/P, k x/B), each times the decline 1 + d max(0, k - P)/P

        It is what a chain of P servers and a bus does once its queue is steady. With a head, k times
        (base + seek + rotation/2 + x/B), with the mean seek between places that are uniform over the image: 8/15 of the
        square root's range.
        """
        way = self.way(direction)
        transfer = block_bytes / way.bandwidth * 1e6
        if self.head is not None:
            seek = self.head.adjacent_us + (self.head.full_us - self.head.adjacent_us) * 8 / 15
            return k * (way.base_us + seek + 30e6 / self.head.rpm + transfer)
        decline = 1 + way.decline * max(0, k - way.slots) / way.slots
        return decline * max(way.base_us + transfer, k * way.base_us / way.slots, k * transfer)


def _sizes_parsed(found: object) -> object:
    """Human sizes and rates as numbers; what is not one of them is left for the schema to refuse."""
    if not isinstance(found, dict):
        return found
    found = dict(found)
    if isinstance(found.get("size"), (str, int)):
        found["size"] = parse_size(found["size"])
    for name in ("read", "write"):
        way = found.get(name)
        if isinstance(way, dict) and isinstance(way.get("bandwidth"), (str, int)):
            found[name] = {**way, "bandwidth": parse_rate(way["bandwidth"])}
    return found


def load(path: Path, size: int | None = None) -> Device:
    """Read a device file; `size` in bytes overrides the file's. Raises DeviceFileError."""
    try:
        found = YAML(typ="safe").load(path.read_text())
        device = msgspec.convert(_sizes_parsed(found), Device)
    except OSError as error:
        raise DeviceFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeviceFileError(f"{path}: is not text: {error.reason}") from error
    except YAMLError as error:
        first = " ".join(str(error).split())
        raise DeviceFileError(f"{path}: is not YAML: {first}") from error
    except (msgspec.ValidationError, ValueError) as error:
        raise DeviceFileError(f"{path}: {error}") from error
    if size is not None:
        device = msgspec.structs.replace(device, size=size)
    _check(path, device)
    return msgspec.structs.replace(device, size=device.size // _MIB * _MIB)


def _check(path: Path, device: Device) -> None:
    if device.size < LEAST_SIZE:
        raise DeviceFileError(f"{path}: size: {device.size} bytes are too few for a file system, at least 16MiB")
    for name, way in (("read", device.read), ("write", device.write)):
        if way.bandwidth <= 0:
            raise DeviceFileError(f"{path}: {name}: bandwidth: {way.bandwidth} is not above 0")
        if device.head is not None and (way.slots != 1 or way.decline):
            raise DeviceFileError(f"{path}: {name}: a device with a head has 1 slot and no decline")
    if device.head is not None and device.head.full_us < device.head.adjacent_us:
        raise DeviceFileError(f"{path}: head: full_us {device.head.full_us} is less than adjacent_us")


def shipped() -> list[str]:
    """Names of the devices that come with the testbed."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def shipped_file(name: str) -> Path:
    """The file of a device that comes with the testbed. Raises DeviceFileError."""
    if name not in shipped():
        raise DeviceFileError(f"{name}: no such device; there are {', '.join(shipped())}, or give a --device-file")
    return SHIPPED / f"{name}.yaml"
