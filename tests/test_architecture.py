"""Rules of the code base that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("keigo", "fusefs", "workloads", "testbed")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What each package may import of ours, besides itself. Everything else points the wrong way.
MAY_IMPORT = {
    "keigo.units": set[str](),
    "keigo.errors": set[str](),
    "keigo.config": {"keigo.units", "keigo.errors"},
    "keigo.discover": {"keigo.units", "keigo.config", "keigo.errors"},
    "keigo.failpoints": set[str](),
    "keigo.decisions": set[str](),
    "keigo.live_config": {"keigo.config"},
    "keigo.mounts": set[str](),
    "keigo.control": {"keigo.errors", "keigo.mounts"},
    "keigo.lsm": set[str](),
    "keigo.placement": {"keigo.lsm", "keigo.devices.model", "keigo.devices.profile"},
    "keigo.tiers": {
        "keigo.lsm",
        "keigo.placement",
        "keigo.config",
        "keigo.errors",
        "keigo.failpoints",
        "keigo.clock",
        "keigo.decisions",
        "keigo.devices.model",
        "keigo.devices.load",
        "keigo.devices.profile",
    },
    "keigo.cache": {
        "keigo.tiers",
        "keigo.placement.budget",
        "keigo.lsm.roles",
        "keigo.clock",
        "keigo.decisions",
        "keigo.failpoints",
    },
    "keigo.devices": {"keigo.units", "keigo.errors", "keigo.config", "keigo.discover", "keigo.mounts"},
    "keigo.observe": {"keigo.tiers", "keigo.cache", "keigo.lsm", "keigo.units", "keigo.devices", "keigo.clock"},
    "keigo.policies": {"keigo.config", "keigo.errors", "keigo.placement"},
    "keigo.doctor": {"keigo.config", "keigo.control", "keigo.devices", "keigo.mounts", "keigo.units"},
    "keigo.cli_doctor": {"keigo", "fusefs"},
    "keigo.mount_helper": {"keigo.cli"},
    "keigo.devices_file": {"keigo.config"},
    "fusefs": {"keigo.tiers", "keigo.lsm", "keigo.placement", "keigo.cache", "keigo.failpoints"},
    "keigo.capabilities": set[str](),
    "keigo.serving.arguments": {"keigo.control", "keigo.lsm.roles", "keigo.tiers"},
    "keigo.serving.drain": {"keigo.tiers", "keigo.control", "keigo.units"},
    "keigo.serving.leaving": {"keigo.tiers", "keigo.placement", "keigo.control", "keigo.units"},
    "keigo.serving.tier_change": {"keigo"},
    "keigo.serving.mounting": {"keigo"},
    "keigo.serving": {"fusefs", "keigo"},
    "keigo.keeper": set[str](),
    "keigo.daemon": {"keigo"},
    "keigo.cli": {"keigo"},
    "keigo.cli_bench": {"keigo", "workloads"},
    "keigo.cli_bench_compare": {"keigo", "workloads"},
    "keigo.cli_common": {"keigo.config", "keigo.errors"},
    "keigo.cli_devices": {"keigo"},
    "keigo.cli_tier": {"keigo"},
    "keigo.__main__": {"keigo.cli"},
    "keigo": set[str](),
    "testbed": {"keigo.units", "keigo.errors", "keigo.mounts"},
    "workloads.operations": set[str](),
    "workloads.records": {"keigo.errors", "workloads.operations"},
    "workloads.generators": {"keigo.errors", "workloads.operations", "workloads.records"},
    "workloads.engines": {"keigo.errors", "keigo.units", "workloads.operations"},
    "workloads": {
        "keigo.config",
        "keigo.control",
        "keigo.devices.profile",
        "keigo.errors",
        "keigo.lsm.roles",
        "keigo.mounts",
        "keigo.units",
    },
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rule_for(module: str) -> str:
    return max((name for name in MAY_IMPORT if within(module, name)), key=len)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT / (full.replace(".", "/") + ".py")).exists()
                yield full if is_module else node.module


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_dependencies_point_one_way(path: Path) -> None:
    module = module_of(path)
    rule = rule_for(module)
    allowed = MAY_IMPORT[rule] | ({rule} if rule != "keigo" else set())
    # `keigo` alone has the version and nothing else.
    ours = [name for name in imports_of(path) if name.partition(".")[0] in PACKAGES and name != "keigo"]
    wrong = [name for name in ours if not any(within(name, package) for package in allowed)]
    assert not wrong, f"{module} may not import {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_descriptor_is_taken_from_a_temporary(path: Path) -> None:
    """`open_dir(name, fd).fd` is closed before it can be used: the owner goes with the expression."""
    wrong = [line for line in path.read_text().splitlines() if re.search(r"\)\.(file\.)?fd\b", line)]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_pyfuse3_driver_is_async(path: Path) -> None:
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AsyncFunctionDef)]
    assert not found or module_of(path) == "fusefs.pyfuse3_driver"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_fuse_types_stay_in_the_driver(path: Path) -> None:
    assert "pyfuse3" not in set(imports_of(path)) or module_of(path) == "fusefs.pyfuse3_driver"


def test_the_daemon_has_no_numpy() -> None:
    """It would take 10 MiB and 40 ms of each mount. Who configures a cache gets numpy with it."""
    parts = (
        "keigo.cli, keigo.daemon, keigo.serving.service, fusefs.kernel_driver, keigo.devices.identity, keigo.discover"
    )
    code = f"import sys, {parts}; print(sorted({{'numpy', 'scipy', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
