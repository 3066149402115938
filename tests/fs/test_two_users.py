"""Two users who are not root get exactly what they get from ext4: the same calls there are the oracle."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fs.support import Area

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become others")

ANN, BOB = 4001, 4002
SCRIPT = """
import json, os, stat, sys

def tried(name, call):
    try:
        found = call()
    except OSError as error:
        told.append([name, error.errno])
    else:
        told.append([name, found if isinstance(found, (int, str)) else None])

def opened(name, flags, mode=0o666):
    fd = os.open(name, flags, mode)
    try:
        return os.read(fd, 10).decode() if flags & os.O_ACCMODE == os.O_RDONLY else os.write(fd, b"new")
    finally:
        os.close(fd)

told = []
for name in ("private", "group", "open", "000001.sst", "dir/inside", "link", "setuid"):
    tried(name + " read", lambda: opened(name, os.O_RDONLY))
    tried(name + " write", lambda: opened(name, os.O_WRONLY))
    tried(name + " truncate", lambda: os.truncate(name, 1))
    tried(name + " mode", lambda: os.chmod(name, 0o644))
    tried(name + " owner", lambda: os.chown(name, os.getuid(), -1))
    tried(name + " time", lambda: os.utime(name, (1, 1)))
    tried(name + " now", lambda: os.utime(name))
    tried(name + " attribute", lambda: os.setxattr(name, "user.x", b"1"))
    tried(name + " access", lambda: sum(how for how in (1, 2, 4) if os.access(name, how)))
me = str(os.getuid())
for place in ("dir", "sticky", "shared", "."):
    new = place + "/new" + me
    tried(place + " list", lambda: len(os.listdir(place)))
    tried(place + " create", lambda: opened(new, os.O_WRONLY | os.O_CREAT))
    tried(place + " table", lambda: opened(place + "/00000" + me[-1] + ".sst", os.O_WRONLY | os.O_CREAT))
    tried(place + " mkdir", lambda: os.mkdir(new + "d"))
    tried(place + " link", lambda: os.link("open", new + "l"))
    tried(place + " symlink", lambda: os.symlink("open", new + "s"))
    tried(place + " device", lambda: os.mknod(new + "c", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    tried(place + " owner of new", lambda: "%d %d %o" % (lambda s: (s.st_uid, s.st_gid, s.st_mode))(os.stat(new)))
for name in ("sticky/hers", "shared/hers", "dir/inside"):
    tried(name + " rename", lambda: os.rename(name, name + me))
    tried(name + " unlink", lambda: os.unlink(name))
print(json.dumps(told))
"""


def prepare(place: Path) -> None:
    """What root leaves there: Ann's files, with several modes."""
    for name, mode in (
        ("private", 0o600),
        ("group", 0o640),
        ("open", 0o666),
        ("000001.sst", 0o600),
        ("setuid", 0o4755),
    ):
        (place / name).write_bytes(b"hello")
        os.chown(place / name, ANN, ANN)
        (place / name).chmod(mode)
    for name, mode in (("dir", 0o700), ("sticky", 0o1777), ("shared", 0o2777)):
        (place / name).mkdir()
        os.chown(place / name, ANN, ANN)
        (place / name).chmod(mode)
    for name in ("dir/inside", "sticky/hers", "shared/hers"):
        (place / name).write_bytes(b"hello")
        os.chown(place / name, ANN, ANN)
    (place / "link").symlink_to("private")
    place.chmod(0o755)


def told(place: Path, user: int, groups: list[int]) -> list[list[object]]:
    """What a user gets to hear; the directory is the script's own, for no path there is open to others."""
    script = [sys.executable, "-I", "-c", SCRIPT]
    done = subprocess.run(
        script, cwd=place, user=user, group=user, extra_groups=groups, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: list[list[object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("groups", [[], [ANN]], ids=["stranger", "in-the-group"])
def test_everybody_gets_what_ext4_gives(area: Area, tmp_path: Path, groups: list[int]) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for place in (plain, area.path):
        prepare(place)
    refused = []
    for user, others in ((BOB, groups), (ANN, [])):
        wanted, found = told(plain, user, others), told(area.path, user, others)
        assert found == wanted
        refused.append(sum(code in (errno.EACCES, errno.EPERM) for _, code in wanted))
    assert refused[0] > refused[1] > 0
