"""Records db_bench/: what small real runs of db_bench print.

    .venv/bin/python tests/data/workloads/make_db_bench_outputs.py [DIRECTORY]

Needs db_bench of RocksDB (Debian: rocksdb-tools; recorded with 7.8.3). NAME.txt is the standard output of one run.
Nothing in the tests depends on the figures themselves, only on what must hold between them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = ("--num=5000", "--compression_type=none", "--write_buffer_size=131072", "--seed=7")
MIX = {
    "mix_get_ratio": 0.83,
    "mix_put_ratio": 0.14,
    "mix_seek_ratio": 0.03,
    "value_k": 0.2615,
    "value_sigma": 25.45,
    "iter_k": 2.517,
    "iter_sigma": 14.236,
}
RUNS = {
    "plain": ("fillrandom,overwrite,fillsync,readrandom,readmissing,seekrandom,readwhilewriting,readseq,deleterandom",),
    "histograms": ("fillrandom,readrandom,seekrandom,updaterandom", "--histogram=1", "--threads=2"),
    "stats": ("fillrandom,stats,overwrite,levelstats,waitforcompaction,stats,compact,readtocache",),
    "statistics": ("fillrandom,readrandom", "--statistics=1", "--stats_level=4"),
    "repeated": ("fillseq,readrandom[X3]", "--threads=2"),
    "mixed": (
        "fillrandom,mixgraph,readrandomwriterandom,readwhilescanning,multireadrandom,verifychecksum",
        "--histogram=1",
        *(f"--{name}={value}" for name, value in MIX.items()),
    ),
}


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "db_bench")
    target.mkdir(exist_ok=True)
    for name, (benchmarks, *flags) in RUNS.items():
        with tempfile.TemporaryDirectory() as work:
            command = ["db_bench", "--db=db", f"--benchmarks={benchmarks}", *SMALL, *flags]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=True)
        (target / f"{name}.txt").write_text(done.stdout)


if __name__ == "__main__":
    main()
