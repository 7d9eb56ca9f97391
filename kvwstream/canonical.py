"""One spelling per value, its digest, and in what two sets of values differ.

Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8. What every digest is taken of."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """One line per name whose value is another: `name: X there, Y here`."""
    return [
        f"{name}: {_show(there.get(name))} there, {_show(here.get(name))} here"
        for name in names
        if there.get(name) != here.get(name)
    ]


def _show(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    return ",".join(value) if isinstance(value, tuple) else str(value)
