"""What the page on fleets plans with is what is counted."""

from conftest import CALL, STEPS, embedded, tiny_flux

import adaptcache
from adaptcache.calibration.estimate import Size
from benchmarks.fleet import Tally


def test_the_calls_of_a_calibration_are_those_of_the_formula() -> None:
    pipe, prompts = tiny_flux(), embedded(5)
    tally = Tally(pipe.transformer)
    adaptcache.calibrate(
        pipe, prompts[:3], num_inference_steps=STEPS, budget=0.5, pipe_kwargs=CALL.arguments, batch_size=2,
        eval_prompts=prompts[3:], progress=tally.progress,
    )  # fmt: skip
    expected = Size(STEPS, 4, 3, 2).passes()
    left = expected.pop("searching 4 calls") - tally.stages.pop("searching 4 calls")
    assert 0 <= left < 3  # what the three that judge cannot share
    assert dict(tally.stages) == expected and tally.open == 0
