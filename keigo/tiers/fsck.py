"""The part of fsck that reads contents: checksums of files that have one. `scan.reconcile` does the names."""

from __future__ import annotations

import os
from collections.abc import Callable

from keigo.tiers.copying import checksum
from keigo.tiers.fds import Fd
from keigo.tiers.scan import Finding
from keigo.tiers.volume import Volume


def check_checksums(volume: Volume, progress: Callable[[int, int], None] = lambda _done, _of: None) -> list[Finding]:
    """Compare every file that has migrated, and not changed since, with the checksum taken then.

    A file that cannot be read counts too. Nothing can be repaired here: there is one copy.
    """
    findings = []
    with volume.lock:
        files = [(file, record) for file, record in volume.catalog.files() if record.checksum is not None]
    for number, (file, record) in enumerate(files, 1):
        with volume.lock:
            directory, name = volume.locate(file)
            path = volume.path(*record.links[0])
        try:
            opened = Fd(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd))
            found = checksum(opened)
        except OSError as error:
            findings.append(Finding("checksum", path, f"cannot be read on tier {record.home}: {error.strerror}", False))
        else:
            if found != record.checksum:
                detail = f"on tier {record.home}: {found:016x}, was {record.checksum:016x} when it migrated"
                findings.append(Finding("checksum", path, detail, repaired=False))
        progress(number, len(files))
    return findings
