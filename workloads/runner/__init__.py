"""Runs a workload on an engine and measures it.

`place` owns the directory that a run may use, `drive` the loop around each operation, `phase` the threads of a load or
a run, `meters` what is read of processes and tiers meanwhile, `isolation` the page cache and the memory limit,
`benchmark` the order of it all, `result` what comes out (its JSON is an interface: programs read it), `stuck` the end
of a program whose engine waits for ever.

Operations are done by threads of one process. A database can be open in one process only, so several processes would
be several databases. LevelDB's binding releases the GIL in every call, so its threads run at once; those of RocksDB
and Speedb hold it, so their threads take turns, and a second one adds waiting, not speed (the figures stand in
`workloads.engines`): `keigo bench db-bench` shows what the engine does with real threads. Each thread draws its own
operations, between two chunks. A helper thread that draws ahead takes its time from the same GIL: with YCSB A an
operation of the null engine took 0.95 us so and 1.01 us with a helper, one of LevelDB 3.2 and 3.1, YCSB C on RocksDB
2.2 and 2.3.
"""
