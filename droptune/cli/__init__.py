"""The command line: parse, call the library, print.

Everything heavy is imported inside the commands, so that help and the listings start at once.
What a command prints is data and goes to stdout; progress and remarks go to stderr. An error
is one line and exit code 1, wrong usage 2, Ctrl-C 130.
"""

# Importing a module registers its commands.
from droptune.cli import answer, listings, optimize, queue, report, sites  # noqa: F401
from droptune.cli.database import db
from droptune.cli.group import STORE, TRACEBACK, main

__all__ = ["STORE", "TRACEBACK", "db", "main"]
