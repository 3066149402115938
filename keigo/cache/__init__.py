"""The persistent read-only cache: hot chunks of files on slow tiers, copied to a fast one.

chunks.h and _chunks.c are what readers look at; shadow.py is a file of the cache on its device; store.py all of them;
plan.py decides, as a pure function, what goes in and out; cache.py ties them to the volume; filler.py has them copied.
"""
