"""Comparing schedules that were fitted twice.

What two ways of calibrating compute differs in the last digits on some processors and numbers of threads, where a
library's sums depend on how its input lies in memory; weights that nearly cancel show more of that.
"""

from collections.abc import Sequence

import pytest
from torch.utils._pytree import tree_flatten

from adaptcache.schedule.format import Part


def assert_alike(found: Sequence[Part], expected: Sequence[Part]) -> None:
    """Asserts that parts of schedules hold the same, and the same numbers up to rounding."""
    (left, form), (right, other) = (tree_flatten([part.model_dump() for part in parts]) for parts in (found, expected))
    assert form == other
    for a, b in zip(left, right, strict=True):
        assert a == (pytest.approx(b, rel=1e-3, abs=1e-3) if isinstance(b, float) else b)
