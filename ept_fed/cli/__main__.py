"""`python -m ept_fed.cli`: runs the command line without an installed script."""

from ept_fed.cli.main import main

main()
