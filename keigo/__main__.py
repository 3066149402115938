"""`python -m keigo`."""

from keigo.cli import main

main()
