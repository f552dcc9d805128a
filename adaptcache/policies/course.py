"""The way of a run through the gears of a schedule, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Course", "explained"]


@dataclass
class Course:
    """The way a run has taken; tensors stay on the device.

    Arguments:
        plans: The steps each gear computes.
        gear: The one followed; their number where everything is computed from now on.
        outputs: Those computed so far, newest first.
        signals: Those of each computed step, with shape (B, F).
        choice: The number of a gear that was chosen on the device and not read yet.
        expected: Step, open gears, and what they promise for the worst sample, with shape (G,).
        alarms: The steps after which the guard was heard.
    """

    plans: list[list[int]]
    gear: int
    outputs: list[Tensor] = field(default_factory=list)
    signals: list[Tensor] = field(default_factory=list)
    choice: Tensor | None = None
    expected: list[tuple[int, list[int], Tensor]] = field(default_factory=list)
    alarms: list[int] = field(default_factory=list)


def explained(
    wanted: float,
    expected: tuple[tuple[int, list[int], Tensor], ...],
    alarms: tuple[int, ...],
    everything: bool,
) -> str:
    """Returns why a run was in its gear, in words; reads a few numbers from the device."""
    words = []
    if expected:
        index, opened, worst = expected[-1]
        promised = [float(value) for value in worst]
        good = [k for k, value in enumerate(promised) if value >= wanted]
        taken = good[0] if good else len(opened) - 1
        verb = "promised" if good else "promised only"
        gear, best = opened[taken], promised[taken]
        words.append(f"after step {index} gear {gear} {verb} {best:.1f} dB of {wanted:.1f}")
    if alarms:
        then = "all is computed from there on" if everything else "a slower gear was taken"
        steps = ", ".join(map(str, alarms))
        words.append(
            f"the guard saw an unknown change at step {steps} (other weights, another kind of prompt?): "
            f"{then}"
        )
    return "; ".join(words)
