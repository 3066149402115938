"""The file system: a driver-neutral namespace and the drivers that carry it to the kernel.

`namespace` has all semantics (inodes, handles, operations) and raises `OSError`; a driver only translates between
it and one FUSE interface. May import `keigo.tiers`, `keigo.placement` and `keigo.lsm`.
"""
