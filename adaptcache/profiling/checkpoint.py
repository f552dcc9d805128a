"""What is done of a profile: each batch and each step's sensitivity is on disk as soon as it is measured."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cache import Cache
from ..profile import Profile
from .reference import Trajectory

Rows = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class ProfileCheckpoint:
    """The finished parts of one profile, in a cache. What is not whole is measured again."""

    cache: Cache  # where they are; ranks may share it, or have one each
    key: str  # what they belong to
    rank: int = 0  # who writes: each rank has a file of its own for the sensitivity

    def load(self, number: int) -> tuple[Trajectory, Rows] | None:
        """Returns the trajectory of a batch and the statistics of its prompts, or None."""
        if (tensors := self.cache.load(self.key, f"batch-{number:05d}")) is None:
            return None
        try:
            times = tuple(map(float, tensors.pop("times")))
            branches, guided = tensors.pop("branches").tolist(), bool(tensors.pop("guided"))
            left = int(tensors.pop("left", torch.zeros(1)))
            tracks: dict[str, list[list[torch.Tensor]]] = {"u": [], "x": [], "y": []}
            for name in sorted(name for name in tensors if name[:2] in ("u.", "x.", "y.")):
                tracks[name[0]].append(list(tensors.pop(name)))
            samples = len(next(iter(tensors.values())))
        except (ValueError, KeyError, StopIteration):
            return None
        rows = [{name: stacked[k].numpy() for name, stacked in tensors.items()} for k in range(samples)]
        u, x, y = tracks.values()
        return Trajectory(times, u, x, y, branches=branches, guided=guided, left=left), rows

    def save(self, number: int, run: Trajectory, rows: Rows) -> None:
        """Keeps a batch."""
        tensors = {
            f"{kind}.{track}": torch.stack(values)
            for kind in ("u", "x", "y")
            for track, values in enumerate(getattr(run, kind))
        }
        tensors |= {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        tensors["times"] = torch.tensor(run.times, dtype=torch.float64)
        tensors["guided"] = torch.tensor(run.guided)
        tensors["branches"] = torch.tensor(run.branches, dtype=torch.float64)
        tensors |= {"left": torch.tensor([run.left])} if run.left else {}
        self.cache.save(self.key, f"batch-{number:05d}", tensors)

    def runs(self, numbers: Iterable[int]) -> list[Trajectory] | None:
        """Returns the trajectories of the batches with these numbers, or None where one is missing."""
        found = [self.load(number) for number in numbers]
        return None if None in found else [one[0] for one in found if one]

    def load_sensitivity(self) -> dict[int, float]:
        """Returns the sensitivity of each step that was measured so far, by any rank that wrote here."""
        known: dict[int, float] = {}
        for path in sorted((self.cache.folder / self.key).glob("sensitivity-*.safetensors")):
            if (found := self.cache.load(self.key, path.stem)) and found.keys() == {"steps", "values"}:
                known |= dict(zip(found["steps"].tolist(), found["values"].tolist(), strict=False))
        return known

    def save_sensitivity(self, values: dict[int, float]) -> None:
        """Keeps the sensitivity of steps, to the last bit."""
        tensors = {
            "steps": torch.tensor(list(values)),
            "values": torch.tensor(list(values.values()), dtype=torch.float64),
        }
        self.cache.save(self.key, f"sensitivity-{self.rank:05d}", tensors)

    def load_profile(self) -> Profile | None:
        """Returns the profile that the parts added up to, or None."""
        try:
            profile = Profile.load(self.cache.folder / self.key / "profile.safetensors")
        except ValueError:
            return None  # not there, or not whole: it is measured again
        about = {name: value for name, value in profile.about.items() if name != "of"}
        return replace(profile, about=about) if profile.about.get("of", self.key) == self.key else None

    def save_profile(self, profile: Profile) -> None:
        """Keeps the profile that the parts add up to."""
        kept = replace(profile, about={**profile.about, "of": self.key})
        kept.save(self.cache.folder / self.key / "profile.safetensors")
