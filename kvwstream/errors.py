"""The exceptions of kvwstream, grouped by what the reader has to do about them.

Each is also the builtin kind that a caller would expect (`ValueError`, `OSError`, ...), carries one
message that names what, which, expected, got and what to do, and survives pickling between workers.
"""


class KvwstreamError(Exception):
    """Base of every error that a user can mend; the command line prints it as one line."""


class OptionError(KvwstreamError, ValueError):
    """Change the command line: an option has no meaning or does not fit this model."""


class DataError(KvwstreamError, ValueError):
    """Mend the data: a file, row or example cannot be used as it is."""


class ModelError(KvwstreamError, ValueError):
    """Use another model or checkpoint: this one does not fit the method."""


class PlanMismatchError(KvwstreamError, ValueError):
    """Use the options of the existing artefact, or another place: they do not belong together."""


class IncompleteError(KvwstreamError, RuntimeError):
    """Run `collect` again: parts have no seal yet."""


class PartsFailedError(IncompleteError):
    """Mend what each part's line says, then run `collect` again; all other parts are sealed."""


class DamageError(KvwstreamError, ValueError):
    """Restore the artefact from a copy or make it anew: it is not what its seals say."""


class NumericalError(KvwstreamError, ArithmeticError):
    """Look at the example or the dtype: a coefficient is not a finite number."""


class StorageError(KvwstreamError, OSError):
    """Look at the disk, the bucket or the network: a read or write failed."""


class Stop(BaseException):
    """The process was told to stop (Ctrl-C, SIGTERM); no `except Exception` swallows it."""


class InterruptError(KvwstreamError, RuntimeError):
    """Run the same command again to go on: it was stopped from outside."""


def first_line(error: BaseException) -> str:
    """What a library's exception says, without its further lines; its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
