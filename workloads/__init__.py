"""Workloads that show what a hierarchy does for a database: generators, engines, a runner, and what it reports.

Owns the numbers of a benchmark: which operations are done (`generators`), on which keys and values (`records`), and
what a batch of them is (`operations`). May import `keigo.errors`, `keigo.units`, `keigo.config` and `keigo.control`;
nothing of Keigo imports it but the command line, so the daemon never loads numpy.
"""
