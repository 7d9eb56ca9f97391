"""Local paths as users write them."""

from pathlib import Path


def local_path(text: str) -> Path:
    """The path, `~` expanded where it names a home folder (a file's name may begin with it too)."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or no home
        return Path(text)
