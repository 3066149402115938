"""What mount(8) calls for `mount -t keigo DEVICES.YAML DIR [-o driver=NAME,policy=NAME]`, and so for /etc/fstab:

    /etc/keigo/orders.yaml  /var/lib/my-database  keigo  nofail,driver=kernel  0 0

mount(8) looks for it as /sbin/mount.keigo: ln -s /opt/keigo/.venv/bin/mount.keigo /sbin/. umount(8) needs no help.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

_OURS: Final = ("driver", "policy")
_NO_MATTER: Final = frozenset(
    ("rw", "defaults", "auto", "noauto", "nofail", "nosuid", "nodev", "dev", "suid", "exec", "async", "atime",
     "noatime", "relatime", "_netdev", "user", "nouser")
)  # fmt: skip
"""What /etc/fstab may say of any file system, and changes nothing here."""


def command(arguments: Sequence[str]) -> list[str]:
    """The arguments of `keigo` for those of mount.keigo, as mount(8) gives them. Raises ValueError, one line."""
    places: list[str] = []
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-o", "-N", "-t") and rest:
            value = rest.pop(0)
            options += value.split(",") if word == "-o" else []
        elif word.startswith("-"):
            if word not in ("-s", "-n", "-v", "-w", "--verbose"):
                raise ValueError(f"{word}: not known")
        else:
            places.append(word)
    if len(places) != 2:
        raise ValueError("needs DEVICES.YAML and DIR")
    devices, directory = places
    found = ["mount", directory, "-d", devices]
    for option in filter(None, options):
        name, equals, value = option.partition("=")
        if name in _OURS and equals:
            found += [f"--{name}", value]
        elif name not in _NO_MATTER and not name.startswith("x-") and name != "comment":
            raise ValueError(f"{option}: not an option of a Keigo volume ({', '.join(_OURS)})")
    return found


def main() -> None:
    """Mount, or say why not: exit status 1, or 32 as mount(8) has it for what is not understood."""
    try:
        arguments = command(sys.argv[1:])
    except ValueError as error:
        sys.stderr.write(f"mount.keigo: {error}\n")
        sys.exit(32)
    from keigo.cli import main as keigo

    keigo(arguments, prog_name="keigo")


if __name__ == "__main__":
    main()
