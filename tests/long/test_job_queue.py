"""The Slurm page of docs/distributed.md, with a stand-in for Slurm that starts the jobs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.prepare import prepare
from kvwstream.readers import read_examples
from tests.conftest import tree_bytes

pytestmark = pytest.mark.long
PAGE = Path(__file__).parent.parent.parent / "docs" / "distributed.md"
SBATCH = """#!/bin/bash
script="${@: -1}"
cp "$script" "$JOBS/$$.sh"
setsid bash "$JOBS/$$.sh" > "$JOBS/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -TERM -- "-$job"; done
"""


def test_the_slurm_page(llama, data, tmp_path):
    pytest.importorskip("dask_jobqueue")
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (script,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script = script.replace('memory="64GB"', 'memory="2GB"').replace("jobs=8", "jobs=2")
    (tmp_path / "cluster.py").write_text(script)
    folders = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}"
    environment = {
        **os.environ,
        "JOBS": str(jobs),
        "PATH": f"{folders}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    options = ["--part-size", "2", "--threads", "1"]
    command = ["collect", str(llama), str(data["retain"]), str(tmp_path / "s.zarr"), *options]
    done = subprocess.run(
        [sys.executable, "cluster.py", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(jobs.glob("*.sh"))) == 2
    examples = read_examples(str(data["retain"]))
    collect(prepare(str(llama), examples, part_size=2, threads=1), str(tmp_path / "one.zarr"))
    assert tree_bytes(tmp_path / "s.zarr") == tree_bytes(tmp_path / "one.zarr")
    assert "#SBATCH --gres=gpu:1" in next(jobs.glob("*.sh")).read_text()
