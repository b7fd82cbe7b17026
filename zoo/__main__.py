"""`python -m zoo`: the command line, as the launchers of several processes start it."""

from zoo.cli import main

main()
