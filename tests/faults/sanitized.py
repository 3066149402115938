"""A daemon whose native parts are built with ThreadSanitizer.

Python itself is not: what it does without us is not looked at (`ignore_noninstrumented_modules`), but its locks are
pthread's and known to the sanitizer, so what the GIL orders is in order. PYTHONMALLOC=malloc lets it see that memory
was freed under a reader.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import World
from tests.engines.processes import ROOT

REPORT = "WARNING: ThreadSanitizer"
MODULES = {"fusefs/_datapath": "fusefs/_datapath.c", "keigo/cache/_chunks": "keigo/cache/_chunks.c"}
FLAGS = ["-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", "-fPIC", "-shared", "-fsanitize=thread", "-Wno-tsan"]


def runtime() -> Path | None:
    """The sanitizer's library; None where there is none to be preloaded."""
    found = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout.strip()
    library = Path(found).resolve()
    return library if library.is_file() else None


@dataclass
class Sanitized:
    """A copy of the daemon's code, and how to run it."""

    base: Path
    library: Path
    faults: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Source -> what is to be replaced in it by what, for one that is wrong on purpose."""

    def build(self) -> None:
        """Copy the packages and compile their native parts. Raises CalledProcessError."""
        for package in ("keigo", "fusefs"):
            shutil.copytree(ROOT / package, self.base / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for source, (right, wrong) in self.faults.items():
            text = (self.base / source).read_text()
            assert text.count(right) == 1, f"{source}: {right}"
            (self.base / source).write_text(text.replace(right, wrong))
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for module, source in MODULES.items():
            include = f"-I{sysconfig.get_path('include')}"
            command = ["gcc", *FLAGS, include, str(self.base / source), "-o", str(self.base / f"{module}{suffix}")]
            subprocess.run(command, check=True, capture_output=True, text=True)

    @property
    def under(self) -> tuple[str, ...]:
        """What Python is started by. Not at random addresses: those of some kernels are where the sanitizer wants its
        own."""
        return "setarch", "-R", "env", f"LD_PRELOAD={self.library}"

    @property
    def environment(self) -> dict[str, str]:
        """What Python is started with."""
        options = "ignore_noninstrumented_modules=1 history_size=4"
        return {"PYTHONPATH": str(self.base), "PYTHONMALLOC": "malloc", "TSAN_OPTIONS": options}

    def mount(self, world: World) -> None:
        """Mount a world by it."""
        world.under = self.under
        world.mount(env=self.environment)

    def test(self, *arguments: str, until_seen: bool = False) -> str:
        """Run pytest by it, with `until_seen` up to the first report; returns what was said."""
        # Imported before pytest puts the project's own directory in front.
        command = [*self.under, sys.executable, "-P", "-m", "pytest", "-p", "keigo", "-p", "fusefs", "-q", "-s"]
        environment = self.environment
        environment["TSAN_OPTIONS"] += f" halt_on_error={until_seen:d}"
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "--basetemp", str(self.base / "t"), *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert REPORT in done.stdout or done.returncode == 0, done.stdout
        return done.stdout


def reports(said: str) -> list[str]:
    """What the sanitizer has found, a text each."""
    return [REPORT + text.partition("==================")[0] for text in said.split(REPORT)[1:]]
