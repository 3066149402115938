"""`python -m testbed`."""

from testbed.cli import main

main(prog_name="scripts/testbed")
