"""The situations of `benchmarks/situations.py` are right or refused, none is wrong."""

import contextlib
import io
import warnings

import pytest

from benchmarks.situations import SITUATIONS

LONG = {
    "panorama of two views (StableDiffusionPanoramaPipeline)", "two calls at a time (HeunDiscreteScheduler)",
    "times equal but for rounding (KDPM2AncestralDiscreteScheduler)", "thirty short loops (autoregressive)",
    "FreeInit (AnimateDiff), calibrated", "FreeInit (AnimateDiff), by the schedule of one loop",
}  # fmt: skip
IDENTITY = 3  # has tests of its own
EVERY = [
    pytest.param(function, id=f"{kind}: {name}", marks=[pytest.mark.slow] if name in LONG or kind == IDENTITY else [])
    for kind, known in SITUATIONS.items()
    for name, function in known.items()
]


@pytest.mark.parametrize("function", EVERY)
def test_a_situation_is_right_or_refused(function):
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        assert function() in ("right", "refused")


def test_each_kind_has_six_situations():
    assert all(len(known) >= 6 for known in SITUATIONS.values())
