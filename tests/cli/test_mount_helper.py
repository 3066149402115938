"""`mount -t keigo`, the unit for systemd."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keigo.mount_helper import command
from tests.conftest import World

ROOT = Path(__file__).parents[2]


def test_options_of_mount() -> None:
    assert command(["/e/o.yaml", "/db"]) == ["mount", "/db", "-d", "/e/o.yaml"]
    given = ["/e/o.yaml", "/db", "-s", "-n", "-o", "rw,nofail,x-systemd.before=db.service,driver=pyfuse3,policy=levels"]
    assert command(given) == ["mount", "/db", "-d", "/e/o.yaml", "--driver", "pyfuse3", "--policy", "levels"]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["/e/o.yaml"], "needs DEVICES.YAML and DIR"),
        (["a", "b", "c"], "needs DEVICES.YAML and DIR"),
        (["a", "b", "-o", "ro"], "ro: not an option"),
        (["a", "b", "-o", "driver"], "driver: not an option"),
        (["a", "b", "-z"], "-z: not known"),
    ],
)
def test_what_is_not_understood(given: list[str], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        command(given)


def test_a_volume_is_mounted_as_mount_does_it(world: World) -> None:
    helper = [sys.executable, "-m", "keigo.mount_helper", str(world.config), str(world.directory)]
    done = subprocess.run([*helper, "-o", f"rw,driver={world.driver}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    world.pids.append(world.status()["pid"])
    assert world.status()["driver"] == world.driver
    subprocess.run(["umount", world.directory], check=True)
    world.wait_dead()
    bad = subprocess.run([*helper, "-o", "ro"], capture_output=True, text=True, timeout=60)
    assert (bad.returncode, bad.stderr.count("\n")) == (32, 1)
    assert not world.is_mounted()


def test_the_unit_calls_what_there_is() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "systemd" / "keigo@.service")
    for key, what in (("ExecStart", "mount"), ("ExecStop", "umount")):
        program, command_name, *rest = unit["Service"][key].split()
        assert (os.path.basename(program), command_name) == ("keigo", what)
        assert "${DIR}" in rest
    assert unit["Service"]["SendSIGKILL"] == "no"


def test_a_tier_that_others_can_reach_is_told(world: World) -> None:
    world.tiers["mid"].chmod(0o750)
    done = world.keigo("mount", world.directory, "-d", world.config, "--driver", world.driver)
    world.pids.append(world.status()["pid"])
    assert done.stderr.splitlines() == [
        f"note: tier mid: others can reach its files past the mount: chmod 700 {world.tiers['mid']}"
    ]


def test_a_shell_completes_commands() -> None:
    asked = {"_KEIGO_COMPLETE": "bash_complete", "COMP_WORDS": "keigo mig", "COMP_CWORD": "1"}
    command = [os.path.join(os.path.dirname(sys.executable), "keigo")]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["plain,migrate"]
