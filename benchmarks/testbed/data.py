"""Writes the test bed's data: python -m benchmarks.testbed.data OUT

    OUT/clear/<config>/train-00000-of-00001.parquet     CLEAR's configs and columns
    OUT/clear/<set>_perturbed_1, _2                     two folds by person, save_to_disk folders
    OUT/mllmu/<config>/train-00000-of-00001.parquet     MLLMU-Bench's configs and columns
    OUT/tofu/<config>.json                              TOFU's JSON lines (text only)

Unlearning data hold training drawings, every test set new ones.
"""

import argparse
from pathlib import Path

from benchmarks.testbed.clear import write_clear
from benchmarks.testbed.mllmu import write_mllmu
from benchmarks.testbed.tofu import write_tofu


def write_all(out: Path) -> None:
    """The whole data set, the same bytes at every call."""
    write_clear(out / "clear")
    write_mllmu(out / "mllmu")
    write_tofu(out / "tofu")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    write_all(parser.parse_args().out)
