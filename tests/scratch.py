"""Where the tests' files are: an ext4 in memory, so that no other's load on a real disk decides how long a sync takes.

It is a real file system on a loop device, whose file is in /dev/shm. `--basetemp` asks for another place; without root
or with little memory it is pytest's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
_PLACE: Final = Path("/tmp")
_NAME: Final = "keigo-scratch-"
_SIZE: Final = 16 << 30  # bytes, of which only what is used takes memory
_NEEDED: Final = 6 << 30  # bytes; a run takes 2 GiB at most


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def make() -> Path | None:
    """Mount one for this process; None where that cannot be."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or _available() < _NEEDED:
        return None
    for old in _MEMORY.glob(f"{_NAME}*"):
        pid = int(old.name.removeprefix(_NAME))
        if not Path(f"/proc/{pid}").exists():  # it was killed
            remove(_PLACE / old.name)
    name = f"{_NAME}{os.getpid()}"
    image, place = _MEMORY / name, _PLACE / name
    with image.open("xb") as file:
        file.truncate(_SIZE)
    place.mkdir(mode=0o755)
    try:
        for command in (
            ["mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(image)],
            ["mount", "-o", "loop,discard,noinit_itable", str(image), str(place)],
        ):
            subprocess.run(command, check=True, capture_output=True)
    except subprocess.CalledProcessError:  # no loop devices here
        remove(place)
        return None
    return place


def remove(place: Path) -> None:
    """Unmount it and give the memory back, whatever is still open there."""
    subprocess.run(["umount", "-l", place], capture_output=True)
    (_MEMORY / place.name).unlink(missing_ok=True)
    place.rmdir()
