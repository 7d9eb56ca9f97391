"""Images of examples, decoded only when they are needed and never trusted."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvwstream.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image in a data set's file: encoded bytes, read when they are asked for.

    A data set of a million images stays on the disk that way.
    """

    rows: Any
    """The `datasets.Dataset`."""
    row: int
    column: str
    index: int | None = None
    """Within a column of lists."""

    def read_bytes(self) -> bytes:
        """The encoded image."""
        value = self.rows[self.row][self.column]
        return bytes((value if self.index is None else value[self.index])["bytes"])


ImageSource = bytes | Path | StoredImage
MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a gigabyte as RGB. A larger image is taken for a bomb."""


def load_image(source: ImageSource, place: str) -> Image:
    """Decode an image to RGB; `DataError` naming `place` if it is missing, broken or a bomb."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, StoredImage):
        source = source.read_bytes()
    shown = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{place}: image {shown}: {image.width} x {image.height} pixels, more than "
                    f"{MAX_PIXELS}; scale it down"
                )
            return image.convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{place}: image {shown}: no such file") from error
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(f"{place}: image {shown}: cannot be read: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for cut-off files
        raise DataError(f"{place}: image {shown}: is damaged: {error}") from error
