"""Two folds of a benchmark's test set: python -m benchmarks.paper.folds FOLDER --by COLUMN

FOLDER_1 and FOLDER_2 hold the rows of every other value of COLUMN, in the order of the values: a
person is in one fold with all rows. Written by `save_to_disk`, as CLEAR's published folds are.
"""

from __future__ import annotations

import argparse

from datasets import load_dataset


def write_folds(folder: str, column: str) -> None:
    """Both folds, beside `folder`."""
    rows = load_dataset(folder, split="train")
    number = {value: index for index, value in enumerate(sorted(set(rows[column])))}
    fold_of = [number[value] % 2 for value in rows[column]]
    for fold in (0, 1):
        chosen = [index for index, own in enumerate(fold_of) if own == fold]
        rows.select(chosen).save_to_disk(f"{folder}_{fold + 1}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--by", required=True)
    options = parser.parse_args()
    write_folds(options.folder, options.by)
