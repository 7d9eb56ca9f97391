"""Which GPUs each worker process sees; decided without any being there."""

from __future__ import annotations

import pytest
import torch

from kvwstream.errors import OptionError
from kvwstream.pipelines import local_cluster
from kvwstream.pipelines.local_cluster import gpu_groups

SEEN = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def eight(monkeypatch):
    """A machine with eight GPUs, as far as the question goes."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(local_cluster, "resolve_device", lambda device: torch.device("cuda"))
    monkeypatch.delenv(SEEN, raising=False)


@pytest.mark.parametrize(
    ("workers", "size", "visible", "groups"),
    [
        (2, 1, None, ["0", "1"]),
        (2, 4, None, ["0,1,2,3", "4,5,6,7"]),
        (3, 2, None, ["0,1", "2,3", "4,5"]),
        (2, 1, "5,2,7", ["5", "2"]),
        (1, 2, "GPU-b,GPU-a", ["GPU-b,GPU-a"]),
    ],
)
def test_each_worker_sees_the_next_gpus(eight, monkeypatch, workers, size, visible, groups):
    if visible:
        monkeypatch.setenv(SEEN, visible)
    assert gpu_groups(workers, size, "auto") == [{SEEN: group} for group in groups]


@pytest.mark.parametrize(("workers", "size", "visible"), [(9, 1, None), (2, 5, None), (2, 1, "3")])
def test_too_few_gpus_are_refused(eight, monkeypatch, workers, size, visible):
    if visible:
        monkeypatch.setenv(SEEN, visible)
    with pytest.raises(OptionError, match=f"need {workers * size}, {1 if visible else 8} are vis"):
        gpu_groups(workers, size, "cuda")


def test_on_a_cpu_there_is_nothing_to_group():
    assert gpu_groups(3, 1, "cpu") == [{}, {}, {}]
