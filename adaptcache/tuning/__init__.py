"""Finds the schedule for a target by trials on the true pipeline. Needs `adaptcache-diffusers[tune]`.

What `calibrate` returns is the start of a search by an optuna study: neighbours of the best plans are fitted,
and judged by decoded images of prompts that nothing was fitted on.

References:
    | Optuna (Akiba et al., 2019), https://arxiv.org/abs/1907.10902
    | BudCache (2026), https://arxiv.org/abs/2606.13496 (searches plans with a fixed number of calls)
    | F-Race (Birattari et al., 2002): trials are pruned prompt by prompt, by a paired test
"""

from .front import Front, Point, Tuned
from .target import Target
from .tune import tune

__all__ = ["Front", "Point", "Target", "Tuned", "tune"]
