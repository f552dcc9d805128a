"""MeanCache (2026), https://arxiv.org/abs/2601.19961: a jump with the average velocity, from latents too."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..step import Step
from .base import Forecast, Weights


class Velocity(Forecast):
    """Corrects the last velocity by how the average velocity of the last span differs from its start.

    With z the latents, v the velocity, t the last computed step, r the one `span` computed steps
    before, and s this step: v_t + (s - t) (z_t - z_r - (t - r) v_r) / (t - r)^2. The bracket is what the
    velocity's change has done to the latents. For flow matching only, where dz/dt is the model output. On a
    velocity that is linear in time the correction is half of the true one: the average of a line is at its
    middle.
    """

    keeps_latents: ClassVar[bool] = True

    type: Literal["velocity"] = "velocity"
    span: Annotated[int, Field(ge=1, le=6)] = 1  # how many computed steps back r is

    @property
    def depth(self) -> int:
        return self.span + 1

    def weights(self, step: Step) -> Weights:
        known = step.past[: self.depth]
        if len(known) == 1:
            return Weights((1.0,))
        span = step.times[known[0]] - step.times[known[-1]]
        push = (step.t - step.times[known[0]]) / span**2
        between = (0.0,) * (len(known) - 2)
        return Weights((1.0, *between, -push * span), past_x=(push, *between, -push))
