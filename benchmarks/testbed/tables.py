"""Columns and files that the benchmark schemas share."""

import io
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Features, List, Value

from benchmarks.testbed.persons import Person

Row = dict[str, Any]
Persons = tuple[Person, ...]
TEXT, TEXTS = Value("string"), List(Value("string"))
DRAWINGS = 8  # of each person, in training and in test sets alike
WRONG = 3  # perturbed captions, names, answers and options of each row


def picture(image: PIL.Image.Image, path: str) -> Row:
    """The Image struct: PNG bytes and a path."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": path}


def drawing(person: Person, number: int) -> Row:
    """The Image struct of one drawing of a person."""
    return picture(person.drawing(number), f"{person.number:02d}_{number:05d}.png")


def write(rows: list[Row], features: Row, folder: Path) -> None:
    """One parquet shard."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_list(rows, features=Features(features))
    data.to_parquet(folder / "train-00000-of-00001.parquet")
