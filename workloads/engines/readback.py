"""What RocksDB and Speedb say they run with: the OPTIONS file that each open writes, against what was asked for.

Both change values that are out of bounds without a word in the result of the open, and a binding may drop some.
The format is that of `examples/rocksdb_option_file_example.ini` in RocksDB's source: sections, `name=value` lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Final

from workloads.engines.options import EngineOptions, OptionError
from workloads.engines.protocol import EngineError

_NAME: Final = re.compile(r"OPTIONS-(\d+)")
_VALUE: Final = re.compile(r"^\s*(\w+)=(.*)$", re.MULTILINE)

COMPRESSION_NAMES: Final = {
    "none": "kNoCompression",
    "snappy": "kSnappyCompression",
    "zlib": "kZlibCompression",
    "bz2": "kBZip2Compression",
    "lz4": "kLZ4Compression",
    "lz4hc": "kLZ4HCCompression",
    "zstd": "kZSTD",
}
_STYLE_NAMES: Final = {"leveled": "kCompactionStyleLevel", "universal": "kCompactionStyleUniversal"}


def _boolean(value: object) -> str:
    return "true" if value else "false"


def _bloom(bits: object) -> tuple[str, ...]:
    """RocksDB 9.8 and Speedb write no bits, RocksDB 7.8 does."""
    return ("bloomfilter", f"bloomfilter:{bits}:false") if bits else ("nullptr",)


_STORED: Final[Mapping[str, tuple[str, Callable[[object], str | tuple[str, ...]]]]] = {
    "write_buffer": ("write_buffer_size", str),
    "file_size": ("target_file_size_base", str),
    "background_jobs": ("max_background_jobs", str),
    "subcompactions": ("max_subcompactions", str),
    "block_cache": ("no_block_cache", lambda size: _boolean(size == 0)),
    "bloom_bits": ("filter_policy", _bloom),
    "direct_reads": ("use_direct_reads", _boolean),
    "direct_writes": ("use_direct_io_for_flush_and_compaction", _boolean),
    "compression": ("compression", lambda name: COMPRESSION_NAMES[str(name)]),
    "max_open_files": ("max_open_files", str),
    "compaction_style": ("compaction_style", lambda name: _STYLE_NAMES[str(name)]),
    "growth_factor": ("max_bytes_for_level_multiplier", lambda factor: f"{factor}.000000"),
    "level_base": ("max_bytes_for_level_base", str),
    "level0_slowdown": ("level0_slowdown_writes_trigger", str),
    "level0_stop": ("level0_stop_writes_trigger", str),
    "dynamic_levels": ("level_compaction_dynamic_level_bytes", _boolean),
}
"""Option -> its name in the file, and how a value is written there.

The file has neither the size of the block cache nor the bits of the filter, no `db_paths`, and nothing of `sync` and
`wal`, which go with each write.
"""


def read_options(database: str) -> dict[str, str]:
    """Name -> value of a database with one column family, from its latest OPTIONS file. Raises EngineError."""
    try:
        found = [match for name in os.listdir(database) if (match := _NAME.fullmatch(name))]
        if not found:
            raise EngineError(f"{database}: no OPTIONS file to read the options back from")
        latest = max(found, key=lambda match: int(match[1]))[0]
        with open(os.path.join(database, latest), encoding="utf-8", errors="replace") as file:
            return dict(_VALUE.findall(file.read()))
    except OSError as error:
        raise EngineError(f"{error.filename}: {error.strerror}") from error


def check_in_effect(engine: str, database: str, options: EngineOptions) -> None:
    """Raises OptionError for the first option that the database does not run with as asked for."""
    stored = read_options(database)
    for name, (key, written) in _STORED.items():
        value = getattr(options, name)
        if value is None:
            continue
        accepted = written(value)
        if stored.get(key) not in ((accepted,) if isinstance(accepted, str) else accepted):
            raise OptionError(
                f"{engine} does not run with {name} {value!r}: {key}={stored.get(key, '')} in its OPTIONS"
            )
