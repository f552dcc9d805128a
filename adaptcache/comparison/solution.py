"""Whether a sampler has an exact solution that more steps come nearer to."""

from __future__ import annotations

from typing import Any

__all__ = ["no_solution"]

RANDOM = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "KarrasVe", "ScoreSdeVe")


def no_solution(scheduler: Any) -> str | None:
    """Returns why more steps do not come nearer to one solution, or None where they do."""
    name, config = type(scheduler).__name__, scheduler.config
    noisy = str(config.get("algorithm_type", "")).startswith("sde") or config.get("stochastic_sampling")
    if noisy or any(part in name for part in RANDOM):
        return f"{name} draws noise at each step: there is no exact solution to compare with"
    return None
