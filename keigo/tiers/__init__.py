"""Tier directories and everything that keeps their files safe.

Owns the trees on the tiers, the catalog that indexes them, intents, guards, migration, recovery and fsck.
May import `keigo.lsm`, `keigo.placement` and `keigo.config`; knows nothing of FUSE, of requests or of the command line.
Promises that a file which was durable stays so: a crash at any line leaves each file in one place, or in two
identical ones that the next mount makes one.

`Volume.lock` guards all state here except what a class's docstring names. Lock order: `Volume.lock`, then
`Tier._account`. No lock is held while a file is copied or the application's data is synced.
"""
