"""The command line. A command calls one function of a room and prints what it returns."""

from zoo.cli.starting import collection_paused

with collection_paused():
    from zoo.cli.main import app, main, run

__all__ = ["app", "main", "run"]
