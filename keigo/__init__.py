"""Keigo: tiered storage under an unmodified LSM key-value store.

This package is the middleware: what a file is for (`lsm`), which tier it belongs on (`placement`), and how it is
kept there without ever being lost (`tiers`). It knows nothing of FUSE; `service` alone joins it to `fusefs`.
"""

__version__ = "0.1.0"
