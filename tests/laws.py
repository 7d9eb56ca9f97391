"""What every mergeable accumulator must obey, written once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def check_accumulator(
    empty: Callable[[], Any], update: Callable[[Any, Any], None], items: Sequence[Any]
) -> None:
    """Empty is the identity, split = whole, merging leaves its inputs alone and can go on.

    A pickled state comes back as it was.
    """

    def fold(part: Sequence[Any]) -> Any:
        state = empty()
        for item in part:
            update(state, item)
        return state

    whole = fold(items)
    assert_equal(pickle.loads(pickle.dumps(whole)), whole)
    assert_equal(empty() + whole, whole)
    assert_equal(whole + empty(), whole)
    for cut in range(len(items) + 1):
        left, right = fold(items[:cut]), fold(items[cut:])
        before = copy.deepcopy((left, right))
        merged = left + right
        assert_close(merged, whole)
        assert_equal(left, before[0])
        assert_equal(right, before[1])
        if items:
            update(merged, items[0])
            assert_equal(left, before[0])
            assert_close(merged, fold([*items, items[0]]))


def assert_equal(a: Any, b: Any) -> None:
    """Equal to the bit, field by field."""
    for name, value in vars(a).items():
        np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def assert_close(a: Any, b: Any) -> None:
    """Integers to the bit, float64 to rounding."""
    for name, value in vars(a).items():
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(value, getattr(b, name), rtol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)
