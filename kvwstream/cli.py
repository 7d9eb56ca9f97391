"""The command line: one command per module of `commands`. Imports wait for their command."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from kvwstream import __version__
from kvwstream.commands.apply import apply
from kvwstream.commands.audit import audit
from kvwstream.commands.collect import collect
from kvwstream.commands.demo import demo
from kvwstream.commands.evaluate import evaluate
from kvwstream.commands.forget_example import forget_example
from kvwstream.commands.models import models
from kvwstream.commands.reduce import reduce
from kvwstream.commands.status import status
from kvwstream.commands.sweep import sweep
from kvwstream.errors import KvwstreamError, OptionError, Stop

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, what batch systems send before they take a machine away, and what users let them send."""

app = typer.Typer(
    help="Training-free unlearning by Knowledge Vector Weakening: collect coefficient statistics, "
    "reduce them, apply them to a checkpoint, audit all three.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for command in (
    collect,
    status,
    forget_example,
    reduce,
    apply,
    audit,
    evaluate,
    sweep,
    models,
    demo,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Training-free unlearning by Knowledge Vector Weakening."""
    if version:
        typer.echo(__version__)


def main() -> None:
    """Run the command line; a domain error is one line on standard error and exit code 1 or 2."""
    for number in STOPS:
        signal.signal(number, _stop)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of writes cut off by a stop
    try:
        app()
    except Stop as stop:
        print(f"kvwstream: {stop}; nothing half-written counts, run it again", file=sys.stderr)
        sys.exit(1)
    except (KvwstreamError, OSError) as error:
        print(f"kvwstream: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, OptionError) else 1)


def entry() -> NoReturn:
    """`main` as a process of its own, which ends without taking the interpreter down.

    By then everything is written, and a thread of a library that comes back while the interpreter
    goes could still abort the process.
    """
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        code = code or 1
    os._exit(code)


def _stop(number: int, frame: object) -> None:
    raise Stop(f"stopped by {signal.Signals(number).name}")
