"""Records as bytes: keys from record numbers, values from (record number, version), both recomputable by a verifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from struct import Struct
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from keigo.errors import KeigoError
from workloads.operations import Int64s, UInt8s, UInt64s

_FNV_BASIS: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(1099511628211)
_PREFIX: Final = b"user"
_DIGITS: Final = 19  # of the largest int64

Order = Literal["hashed", "ordered"]


class RecordError(KeigoError):
    """A key or value that cannot be made as asked; the text says why."""


def fnv64(numbers: Int64s) -> Int64s:
    """YCSB's 64-bit hash of non-negative numbers: FNV over the eight bytes, low one first, without its sign.

    Source: `Utils.fnvhash64` of YCSB, which XORs before it multiplies (FNV-1a) and takes Java's `Math.abs`.
    """
    rest = np.ascontiguousarray(numbers).view(np.uint64)
    octets = max(1, (int(rest.max(initial=0)).bit_length() + 7) // 8)
    hashed: UInt64s = np.bitwise_and(rest, np.uint64(0xFF))
    octet = np.empty_like(hashed)
    hashed ^= _FNV_BASIS
    hashed *= _FNV_PRIME
    for shift in range(8, 8 * octets, 8):
        np.right_shift(rest, np.uint64(shift), out=octet)
        octet &= np.uint64(0xFF)
        hashed ^= octet
        hashed *= _FNV_PRIME
    # The octets above the largest number are 0, so all that is left to do for them is to multiply.
    hashed *= np.uint64(pow(int(_FNV_PRIME), 8 - octets, 1 << 64))
    signed = hashed.view(np.int64)
    np.absolute(signed, out=signed)
    # Math.abs leaves the least int64 as it is, which would be a negative key.
    return np.bitwise_and(signed, np.int64((1 << 63) - 1), out=signed)


class KeyFormat(Protocol):
    """How a workload's record numbers become keys. Calls may run in parallel."""

    @property
    def size(self) -> int:
        """Bytes of every key."""

    def keys(self, numbers: Int64s) -> list[bytes]:
        """The keys of `numbers` (all >= 0), each `size` bytes, different for different numbers."""


@cache
def _four_digits() -> NDArray[np.uint32]:
    """The ASCII digits of 0..9999, four bytes each, as they lie in memory."""
    text = b"".join(b"%04d" % number for number in range(10_000))
    return np.frombuffer(text, dtype=np.uint32)


def _decimal(numbers: Int64s, width: int) -> UInt8s:
    """The decimal digits of `numbers` with leading zeros: uint8[len(numbers), width]."""
    groups = (width + 3) // 4
    digits = np.full((len(numbers), groups * 4), ord("0"), dtype=np.uint8)
    words = digits.view(np.uint32)
    table = _four_digits()
    rest = numbers.astype(np.uint64)
    for group in range(groups - 1, max(-1, groups - 6), -1):
        quotient = rest // np.uint64(10_000)
        words[:, group] = table[rest - quotient * np.uint64(10_000)]
        rest = quotient
    return digits[:, groups * 4 - width :]


def _as_bytes(rows: UInt8s) -> list[bytes]:
    flat = np.ascontiguousarray(rows)
    # numpy's S type drops trailing zero bytes; keys end in digits, so there are none.
    found: list[bytes] = flat.view(f"S{flat.shape[1]}").ravel().tolist()
    return found


@dataclass(frozen=True, slots=True)
class UserKeys:
    """YCSB's keys: `user` and the record number ("ordered") or its `fnv64` ("hashed"), zero-padded to `size` bytes.

    YCSB pads only when told to; here every key has the same size, so that bytes per operation are known. Two records
    may hash to one key: with n records the odds are about n^2 / 2^64 (0.05% for 10^8), as in YCSB. Raises RecordError
    when `size` cannot hold every key.
    """

    order: Order = "hashed"
    size: int = len(_PREFIX) + _DIGITS

    def __post_init__(self) -> None:
        if self.order not in ("hashed", "ordered"):
            raise RecordError(f"key order {self.order!r}: must be hashed or ordered")
        least = len(_PREFIX) + (_DIGITS if self.order == "hashed" else 1)
        if self.size < least:
            raise RecordError(f"key size {self.size}: {self.order} keys need {least} bytes or more")

    def keys(self, numbers: Int64s) -> list[bytes]:
        """See KeyFormat. Raises RecordError when a number has more digits than the key has room for."""
        room = self.size - len(_PREFIX)
        if room < _DIGITS and int(numbers.max(initial=0)) >= 10**room:
            raise RecordError(f"key size {self.size}: record number {int(numbers.max())} needs more than {room} digits")
        shown = fnv64(numbers) if self.order == "hashed" else numbers
        rows = np.empty((len(numbers), self.size), dtype=np.uint8)
        rows[:, : len(_PREFIX)] = np.frombuffer(_PREFIX, dtype=np.uint8)
        rows[:, len(_PREFIX) :] = _decimal(shown, room)
        return _as_bytes(rows)


@dataclass(frozen=True, slots=True)
class SeriesKeys:
    """Keys of a time series store: `series:time`, 8 and 12 digits, so that a series lies together, oldest first.

    Record number n is point `n // series` (its time, in ticks) of series `n % series`.
    """

    series: int

    @property
    def size(self) -> int:
        """Bytes of every key."""
        return 8 + 1 + 12

    def keys(self, numbers: Int64s) -> list[bytes]:
        """See KeyFormat."""
        rows = np.empty((len(numbers), self.size), dtype=np.uint8)
        rows[:, :8] = _decimal(numbers % self.series, 8)
        rows[:, 8] = ord(":")
        rows[:, 9:] = _decimal(numbers // self.series, 12)
        return _as_bytes(rows)


_HEADER: Final = Struct("<IQ")
_SPREAD: Final = 1 << 20
_PIECE: Final = 100


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a value says of itself."""

    key: int
    version: int


class Values:
    """Value bytes by (record number, version, size): the same for the same seed, in every process.

    A value is a header, version (uint32) and record number (uint64), little-endian, and bytes out of a pool of 1 MiB
    of random ones, from a place that depends on both; a value shorter than 12 bytes is the header's first bytes. So
    writing one costs a copy, and a reader can tell a stale value (older version) from a strange one.
    `compression_ratio` is what the pool shrinks to: as db_bench does it, each 100 bytes are that share of random
    bytes, repeated. Calls may run in parallel.
    """

    def __init__(self, seed: int = 0, compression_ratio: float = 1.0) -> None:
        if not 0 < compression_ratio <= 1:
            raise RecordError(f"compression ratio {compression_ratio}: must be above 0 and at most 1")
        fresh = max(1, round(_PIECE * compression_ratio))
        pieces = _SPREAD // _PIECE + 1
        random = np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed)))
        seeds = random.integers(0, 256, (pieces, fresh), dtype=np.uint8)
        base = np.tile(seeds, (1, _PIECE // fresh + 1))[:, :_PIECE].tobytes()[:_SPREAD]
        self._pool = base + base

    def value(self, key: int, version: int, size: int) -> bytes:
        """`size` >= 0 bytes; `version` is taken modulo 2^32."""
        header = _HEADER.pack(version & 0xFFFFFFFF, key)
        body = size - _HEADER.size
        if body <= 0:
            return header[:size]
        start = (key * 0x9E3779B1 + version * 0x85EBCA6B) % _SPREAD
        if body <= _SPREAD:
            return header + self._pool[start : start + body]
        return header + (self._pool * (body // _SPREAD + 1))[start : start + body]

    def matches(self, value: bytes, key: int, version: int) -> bool:
        """Whether `value` is the one of `key` at `version`, whatever its size."""
        return value == self.value(key, version, len(value))

    @staticmethod
    def stamp(value: bytes) -> Stamp | None:
        """What the header says, or None when the value is too short to say it."""
        if len(value) < _HEADER.size:
            return None
        version, key = _HEADER.unpack_from(value)
        return Stamp(key=key, version=version)
