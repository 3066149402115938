"""Read random blocks of files again and again, dropping the page cache, until told to stop; exit 1 at a wrong byte.

check_blocks.py DIRECTORY COUNT
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import sys


def main() -> int:
    directory, count = sys.argv[1], int(sys.argv[2])
    fds = [os.open(f"{directory}/{number:06}.sst", os.O_RDONLY) for number in range(count)]
    expected = [hashlib.sha256(b"%d" % number).digest() for number in range(count)]
    print("reading", flush=True)
    reads = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        number = random.randrange(count)
        offset = random.randrange(2048 - 128) * 32
        if reads % 16 == 0:
            os.posix_fadvise(fds[number], 0, 0, os.POSIX_FADV_DONTNEED)
        found = os.pread(fds[number], 4096, offset)
        if found != expected[number] * 128:
            print(f"file {number} offset {offset}: wrong bytes after {reads} reads")
            return 1
        reads += 1
    print(f"{reads} reads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
