"""Single fields of a row: text, lists and images, as JSON, Arrow and pandas deliver them."""

from __future__ import annotations

from typing import Any

from kvwstream.errors import DataError
from kvwstream.images import ImageSource, StoredImage


def plain(value: Any) -> Any:
    """Arrays (as pandas delivers lists) as lists; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def optional_text(row: dict[str, Any], field: str) -> str | None:
    """Text, or None where the column is missing or null."""
    value = row.get(field)
    return value if isinstance(value, str) else None


def text(row: dict[str, Any], field: str, place: str) -> str:
    """Text that is not blank; `DataError` naming place and field otherwise."""
    value = row.get(field)
    if not isinstance(value, str):
        found = "missing" if value is None else f"{type(value).__name__}, not text"
        raise DataError(f"{place}: field `{field}` is {found}")
    if not value.strip():
        raise DataError(f"{place}: field `{field}` is empty")
    return value


def text_list(row: dict[str, Any], field: str, place: str) -> list[str]:
    """A list of text, not empty."""
    values = plain(row.get(field))
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise DataError(f"{place}: field `{field}` must be a list of text")
    return values


def image_source(row: dict[str, Any], field: str, place: str) -> ImageSource:
    """The image of a column: where a data set stores it, the struct `{bytes, path}`, or bytes."""
    value = row.get(field)
    if isinstance(value, StoredImage):
        return value
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{place}: field `{field}` holds no image bytes")
    return data
