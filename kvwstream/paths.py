"""Local paths as users write them."""

from pathlib import Path


def local_path(text: str) -> Path:
    """The path, `~` expanded where it names a home folder (a file's name may begin with it too)."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user, or no home
        return Path(text)


def hub_origin(folder: Path) -> tuple[str, str] | None:
    """Repository and revision of a snapshot in the hub's cache; None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), folder.name
