"""Workloads: which operations are done, on which records, in which order; nothing here touches a database.

Everything is drawn with numpy in blocks of `workload.BLOCK` operations and cut into batches afterwards, so the
operations of a thread depend on the seed, the thread's number and the number of threads, never on the batch size or
on time. A thread draws only from records that exist for sure: those loaded and those that it inserted itself. YCSB
has threads share one counter of acknowledged inserts instead, which no seed reproduces, and whose reads a verifier
cannot judge.
"""
