"""What a call of a pipeline did, for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil


@dataclass(frozen=True)
class Report:
    """What the last call of the pipeline did, all of its denoising loops together.

    Arguments:
        calls: Denoiser calls, by step and branch: True where it was made, False where it was skipped.
        evidence: "calibrated" where it ran as it was measured, "extrapolated" where it was planned anew or
            ran with weights, arguments or a scheduler that were not measured, "theory" where the schedule is an
            instant one, "none" where nothing was fitted.
        gear: Which plan of the schedule was followed, from the fastest (0); at the end, where it changed.
        why: How that came about, where it was chosen during the run.
        sites: The numbers of the steps at which each site inside of the denoiser was computed; where blocks or
            layers decide for themselves, of each, with its number.
        names: The components that were called, by step and branch.
        unlike: How the run differed from those of the calibration prompts; empty where it did not, or where the
            schedule knows nothing of them.
        notes: What else is to be known of the call.
    """

    calls: tuple[tuple[bool, ...], ...]
    evidence: str
    gear: int = 0
    why: str = ""
    sites: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: tuple[tuple[str, ...], ...] = ()
    unlike: str = ""
    notes: tuple[str, ...] = ()

    @property
    def made(self) -> int:
        """How many denoiser calls were made."""
        return sum(sum(branches) for branches in self.calls)

    @property
    def skipped(self) -> int:
        """How many denoiser calls were skipped."""
        return sum(len(branches) for branches in self.calls) - self.made

    @property
    def computed(self) -> list[int]:
        """The numbers of the steps at which the denoiser was called."""
        return [i for i, branches in enumerate(self.calls) if any(branches)]

    @property
    def components(self) -> dict[str, tuple[int, int]]:
        """The calls of each denoiser that were made, and those that were skipped."""
        found: dict[str, list[bool]] = {}
        for names, branches in zip(self.names, self.calls, strict=False):
            for name, made in zip(names, branches, strict=True):
                found.setdefault(name, []).append(made)
        return {name: (sum(made), len(made) - sum(made)) for name, made in found.items()}

    def __str__(self) -> str:
        strip = "".join("█" if any(branches) else "·" for branches in self.calls)
        lines = [f"{strip}  {self.made} denoiser calls made, {self.skipped} skipped ({self.evidence})"]
        lines[0] += f"; {self.why}" if self.why else ""
        lines[0] += f"; {self.unlike}" if self.unlike else ""
        if len(self.components) > 1:
            parts = (f"{name} {made} of {made + skipped}" for name, (made, skipped) in self.components.items())
            lines.append(f"calls made: {', '.join(parts)}")
        groups: dict[str, list[tuple[int, ...]]] = {}
        for name, steps in self.sites.items():  # blocks that decide for themselves share a row
            groups.setdefault(name.rstrip("0123456789").rstrip(), []).append(steps)
        for name, rows in groups.items():
            shares = [sum(i in steps for steps in rows) / len(rows) for i in range(len(self.calls))]
            marks = "".join("█" if share == 1 else "·▁▂▃▄▅▆▇"[min(7, ceil(share * 7))] for share in shares)
            many = f": {sum(shares) / max(len(shares), 1):.0%} of {len(rows)} computed" if len(rows) > 1 else ""
            lines.append(f"{marks}  {name}{many}")
        return "\n".join([*lines, *self.notes])
