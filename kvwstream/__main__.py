"""`python -m kvwstream` is the command line."""

from kvwstream.cli import entry

entry()
