#!/usr/bin/env python3
"""How long a large MANIFEST takes: compactions of 4 tables to 4, as RocksDB 8 to 10 write them."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator

import google_crc32c

from keigo.lsm.manifest import ManifestReader

BLOCK = 32 << 10
LIVE = 2000


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def string(data: bytes) -> bytes:
    return varint(len(data)) + data


def new_file(number: int, rng: random.Random) -> bytes:
    keys = b"".join(string(rng.randbytes(rng.randint(16, 24)) + rng.randbytes(8)) for _ in range(2))
    fields = [(5, varint(1_760_000_000)), (6, varint(1_760_000_000)), (13, varint(number)), (12, rng.randbytes(16))]
    custom = b"".join(varint(tag) + string(value) for tag, value in [*fields, (15, varint(rng.randint(1, 60_000)))])
    head = varint(103) + varint(rng.randint(1, 6)) + varint(number) + varint(rng.randint(1 << 20, 64 << 20))
    return head + keys + varint(number * 1000) + varint(number * 1000 + 999) + custom + varint(1)


def edits(size: int, rng: random.Random) -> Iterator[bytes]:
    made = 0
    number = LIVE
    while made < size:
        head = b"\x09\x00\x03" + varint(number + 9) + b"\x04" + varint(number * 1000)
        gone = b"".join(b"\x06\x02" + varint(number + i - LIVE) for i in range(4))
        edit = head + gone + b"".join(new_file(number + i, rng) for i in range(4))
        number += 4
        made += len(edit) + 7
        yield edit


def log(records: Iterator[bytes]) -> bytes:
    out = bytearray()
    for record in records:
        rest, first = record, True
        while first or rest:
            room = BLOCK - len(out) % BLOCK
            if room < 7:
                out += bytes(room)
                room = BLOCK
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            crc = google_crc32c.value(bytes([kind]) + part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            out += masked.to_bytes(4, "little") + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
    return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mib", type=int, nargs="?", default=100)
    parser.add_argument("--chunk", type=int, default=1024, help="KiB a call of feed")
    args = parser.parse_args()
    data = log(edits(args.mib << 20, random.Random(1)))
    chunks = [data[at : at + (args.chunk << 10)] for at in range(0, len(data), args.chunk << 10)]
    reader = ManifestReader()
    begin = time.perf_counter()
    for chunk in chunks:
        reader.feed(chunk)
    read = time.perf_counter()
    changes = reader.take_changes()
    tables = list(reader.families[0].tables.values())
    end = time.perf_counter()
    print(f"{len(data) / (1 << 20):.1f} MiB read in {read - begin:.2f} s ({reader.engine})")
    print(f"{len(tables)} live tables and {len(changes)} changes decoded in {end - read:.3f} s")


if __name__ == "__main__":
    main()
