"""The C server behind a device: built when stale, started, asked, found again."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from keigo.errors import KeigoError

_SOURCES: Final = Path(__file__).parent
BINARY: Final = _SOURCES.parent / "build" / "testbed" / "device_server"
CONTROL: Final = "user.testbed"
START_SECONDS: Final = 30
END_SECONDS: Final = 30
# No fused multiply-add: a simulation gives the same bits on every machine.
_FLAGS: Final = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-ffp-contract=off")


class ServerError(KeigoError):
    """A device's server could not be built, started or ended."""


def build() -> Path:
    """Compile the server if its sources are newer. Raises ServerError."""
    sources = sorted(_SOURCES.glob("*.c"))
    newest = max(path.stat().st_mtime_ns for path in [*sources, *_SOURCES.glob("*.h")])
    if BINARY.exists() and BINARY.stat().st_mtime_ns > newest:
        return BINARY
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: another process may be building too, and a running server's file cannot be written.
    fresh = BINARY.with_name(f".device_server.{os.getpid()}")
    try:
        done = subprocess.run(
            ["gcc", *_FLAGS, "-o", str(fresh), *map(str, sources), "-lm"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ServerError("gcc is missing: run scripts/setup bench") from error
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise ServerError(f"{_SOURCES}: does not compile: {done.stderr.strip().splitlines()[0]}")
    fresh.rename(BINARY)
    return BINARY


def start(image: Path, arguments: Sequence[str]) -> list[str]:
    """Start a server that presents itself as the file `image`; returns its notes. Raises ServerError.

    It leads a session of its own: neither Ctrl-C nor the end of the terminal reaches it.
    """
    log = log_of(image)
    reader, writer = os.pipe()
    try:
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [str(build()), str(image), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=errors,
                start_new_session=True,
                cwd="/",
            )
        os.close(writer)
        writer = -1
        said = _read_all(reader)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if said[-1:] == ["ready"]:
        return [note.removeprefix("note: ") for note in said[:-1]]
    process.kill()
    process.wait()
    why = log.read_text().strip() or "it did not answer in time"
    raise ServerError(f"{image}: the device server did not start: {why}")


def _read_all(pipe: int) -> list[str]:
    """The lines that a server writes until it closes the pipe or takes too long."""
    said = b""
    while select.select([pipe], [], [], START_SECONDS)[0]:
        part = os.read(pipe, 4096)
        if not part:
            break
        said += part
    return said.decode().splitlines()


def log_of(image: Path) -> Path:
    """Where the server of an image says why it ended."""
    return image.with_suffix(".log")


def tell(image: Path, command: str) -> None:
    """Give a server a command (see device_server.c). Raises ServerError."""
    try:
        os.setxattr(image, CONTROL, command.encode())
    except OSError as error:
        raise ServerError(f"{image}: {command}: {error.strerror}") from error


def counts(image: Path) -> dict[str, int]:
    """What a server has served since its start. Raises ServerError."""
    try:
        text = os.getxattr(image, CONTROL).decode()
    except OSError as error:
        raise ServerError(f"{image}: the device server does not answer: {error.strerror}") from error
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def find(image: Path) -> psutil.Process | None:
    """The server of an image, by its command line: so it is found whoever started it, a crashed `up` too."""
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if len(command) > 1 and Path(command[0]).name == BINARY.name and command[1] == str(image):
                return process
        except psutil.Error:
            continue
    return None


def memory(process: psutil.Process) -> int:
    """Bytes of memory that a device uses: its image as far as it is written, and some MiB of the server's own."""
    return int(process.memory_info().rss)


def end(image: Path) -> None:
    """Wait for the server of an image that is no longer mounted, and kill it if it stays. Raises ServerError."""
    process = find(image)
    if process is None:
        return
    try:
        process.wait(END_SECONDS)
    except psutil.TimeoutExpired:
        process.kill()
        try:
            process.wait(END_SECONDS)
        except psutil.TimeoutExpired as error:
            raise ServerError(f"{image}: its server, pid {process.pid}, does not end") from error
