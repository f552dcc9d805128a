"""One pipeline, many runs: `make soak`, in small."""

import pytest

from tests.soak import soak


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*planned anew", "ignore:.*used as it is")
def test_many_runs_on_one_pipeline_leave_nothing_behind_and_equal_fresh_ones():
    found = soak(200, every=10)
    assert found.unequal == 0 and found.compared >= 10
    assert found.broken > 5 and found.swaps > 3
    assert max(found.tensors[2:]) - min(found.tensors[2:]) < 20
