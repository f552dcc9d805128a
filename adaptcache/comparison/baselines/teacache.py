"""TeaCache, calibrated as its authors calibrate it: a polynomial from the input's change to the output's."""

from typing import Any

import numpy as np
from pydantic import PrivateAttr
from torch import Tensor

from ...fitting.polynomial import fit_rising
from ...policies.polynomial import Polynomial
from ...schedule.methods import build_rules
from ...schedule.rule import Rule
from ...sites.denoisers import find_spec
from ...step import Step, relative_change, worst
from .base import Case, Params
from .zoo import RuleBaseline, build_runner

THRESHOLDS = (0.03, 0.1, 0.3, 1.0, 3.0)
DEGREE = 4


class Watching(Polynomial):
    """Computes every step, and notes how far the signal and what the blocks add have changed."""

    _pairs: list[tuple[float, float]] = PrivateAttr(default_factory=list)

    def compute(self, state: Any, step: Step) -> bool:
        return True

    def observe(self, state: Any, step: Step, output: Tensor) -> None:
        if step.x is not None and state.anchor is not None and state.output is not None:
            pair = relative_change(step.x, state.anchor), relative_change(output, state.output)
            self._pairs.append((worst(pair[0], step.groups), worst(pair[1], step.groups)))
        super().observe(state, step, output.clone())


class TeaCache(RuleBaseline):
    """Liu et al., 2024, https://arxiv.org/abs/2411.19108"""

    name = "TeaCache"
    about = "our zoo, calibrated; decides for each prompt"
    inside = per_prompt = True
    threshold = "threshold"

    def propose(self, case: Case) -> list[Params]:
        changes = np.array(watch_changes(case))
        rising = fit_rising(changes[:, 0], changes[:, 1], DEGREE)
        published = np.polyfit(changes[:, 0], changes[:, 1], DEGREE)  # as its authors fit it
        fits: list[dict[str, Any]] = [
            {"coefficients": tuple(map(float, published))},
            {"coefficients": rising.coefficients, "clamp": (rising.low, rising.high)},
        ]
        return [{"threshold": threshold, **fit} for fit in fits for threshold in THRESHOLDS]

    def build_rule(self, case: Case, params: Params) -> Rule:
        return build_rules("teacache", **params, on=signal_of(case))[0]


def signal_of(case: Case) -> Any:
    """Returns what is looked at: the modulated input, where the first block's modulation is known."""
    return "modulated" if find_spec(case.denoisers[0]).modulated else "input"


def watch_changes(case: Case) -> list[tuple[float, float]]:
    """Returns the changes of signal and output from step to step, on full runs of the calibration prompts."""
    policy = Watching(threshold=0.0, coefficients=(1.0,), on=signal_of(case))
    (rule,) = build_rules("teacache", coefficients=(1.0,), threshold=0.0, on=signal_of(case))
    runner = build_runner(rule.model_copy(update={"policy": policy}))
    for prompt in case.prompts.batches(1):
        case.setup.run(runner, prompt)
    return policy._pairs
