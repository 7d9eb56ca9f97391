"""kvwstream: training-free unlearning by Knowledge Vector Weakening, for large data.

The names in `__all__` are the public interface; each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvwstream.accessor import LayerRange
    from kvwstream.errors import KvwstreamError
    from kvwstream.gates import attach_gates
    from kvwstream.pipelines.apply import apply
    from kvwstream.pipelines.audit import audit
    from kvwstream.pipelines.collect import collect
    from kvwstream.pipelines.evaluate import evaluate
    from kvwstream.pipelines.prepare import prepare
    from kvwstream.pipelines.reduce import reduce
    from kvwstream.readers import read_examples
    from kvwstream.stores.views import open_statistics, open_store
    from kvwstream.strength import Strength

__version__ = "0.1.0"
__all__ = [
    "KvwstreamError",
    "LayerRange",
    "Strength",
    "apply",
    "attach_gates",
    "audit",
    "collect",
    "evaluate",
    "open_statistics",
    "open_store",
    "prepare",
    "read_examples",
    "reduce",
]

_HOMES = {
    "KvwstreamError": "errors",
    "LayerRange": "accessor",
    "Strength": "strength",
    "apply": "pipelines.apply",
    "attach_gates": "gates",
    "audit": "pipelines.audit",
    "collect": "pipelines.collect",
    "evaluate": "pipelines.evaluate",
    "open_statistics": "stores.views",
    "open_store": "stores.views",
    "prepare": "pipelines.prepare",
    "read_examples": "readers",
    "reduce": "pipelines.reduce",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kvwstream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvwstream.{_HOMES[name]}"), name)
