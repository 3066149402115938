"""Names that are Keigo's, or a file system's, in the root of a tier, and anybody's elsewhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keigo import config
from keigo.policies import make_policy
from keigo.tiers.catalog import ROOT
from keigo.tiers.fds import O_DIR, Fd
from keigo.tiers.opening import open_volume, remove_mirrors
from keigo.tiers.volume import Volume


def opened(base: Path) -> Volume:
    """A volume without a tier in place."""
    source = base / "devices.yaml"
    for name in ("fast", "slow", "mnt"):
        (base / name).mkdir(exist_ok=True)
    tiers = "".join(f"  - {{name: {name}, path: {base / name}}}\n" for name in ("fast", "slow"))
    source.write_text(f"volume: names\ntiers:\n{tiers}")
    loaded = config.load(source)
    volume, findings = open_volume(loaded, base / "mnt", make_policy(loaded))
    assert not findings
    return volume


def test_what_a_mount_would_not_show_again_is_refused(tmp_path: Path) -> None:
    volume = opened(tmp_path)
    with pytest.raises(OSError, match="not permitted") as caught:
        volume.mkdir(ROOT, b"lost+found", 0o755, 0, 0)
    assert caught.value.errno == errno.EPERM
    above = volume.mkdir(ROOT, b"d", 0o755, 0, 0)
    volume.mkdir(above, b"lost+found", 0o755, 0, 0)
    volume.close()
    volume = opened(tmp_path)
    found = volume.lookup(ROOT, b"d")
    assert found is not None
    assert [name for name, _ in volume.names(found.id)] == [b"lost+found"]
    volume.close()


def test_mirrors_by_any_name_are_removed(tmp_path: Path) -> None:
    for path in (".keigo/x", "lost+found/x", "d/.keigo", "d/lost+found/below"):
        (tmp_path / path).mkdir(parents=True)
    remove_mirrors(Fd(os.open(tmp_path, O_DIR)))
    assert sorted(os.listdir(tmp_path)) == [".keigo", "lost+found"]
    assert os.listdir(tmp_path / ".keigo") == ["x"]
    assert os.listdir(tmp_path / "lost+found") == ["x"]
