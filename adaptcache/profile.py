"""What was measured on calibration prompts: statistics, and the reference trajectories."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import ScheduleError
from .files import locate, write_atomically
from .fitting.kernel import added_noise, pair_errors
from .limits import PROMPTS, STEPS, check_falling, check_plain, parse_json

LARGEST = 100_000_000  # bytes: 1,000 prompts with 50 steps
HEADER = 2**17  # bytes
NOISE = 1e-3  # share of the latents' energy; rounding to bfloat16 makes 1e-5
SHAPES = {  # of P prompts, Q <= P of them with sensitivities, N steps
    "times": "N", "gram": "PMM", "magnitude": "PN", "change_in": "PN", "change_out": "PN", "influence": "QN",
}  # fmt: skip
IN_FILES = {"sensitivities": "influence"}  # what arrays are called in files, where that is another name


@dataclass(frozen=True, repr=False, eq=False)
class Profile:
    """Statistics of full runs on P prompts, with N steps."""

    times: np.ndarray  # the grid, falling, with shape (N,)
    # Inner products of the guided outputs u_0 .. u_{N-1} and the latents x_0 .. x_{N-1}, by prompt and divided by the
    # mean energy of its outputs, with shape (P, 2N, 2N).
    gram: np.ndarray
    magnitude: np.ndarray  # mean ratio of an output's norms to those of the step before, with shape (P, N)
    change_in: np.ndarray  # relative L1 change of the latents from the step before, with shape (P, N)
    change_out: np.ndarray  # relative L1 change of the output from the step before, with shape (P, N)
    # Squared error of the final latents, relative to their energy, when only step i is forecast, over the forecast's
    # squared error. Measured on the first Q <= P prompts, with shape (Q, N).
    sensitivities: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)  # where it came from

    def __repr__(self) -> str:
        return f"Profile({self.steps} steps, {len(self.gram)} prompts, sensitivities of {len(self.sensitivities)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Profile):
            return NotImplemented
        pairs = [(getattr(self, one.name), getattr(other, one.name)) for one in fields(self) if one.name != "about"]
        return self.about == other.about and all(np.array_equal(a, b) for a, b in pairs)

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.times)

    @property
    def kernel(self) -> np.ndarray:
        """The mean inner products of the outputs, with shape (N, N)."""
        return np.asarray(self.gram.mean(axis=0)[: self.steps, : self.steps])

    @property
    def sensitivity(self) -> np.ndarray:
        """What a squared error at each step does to the end result, with shape (N,).

        The mean of the measured ones, or the squared length of the step where none was measured.
        """
        if len(self.sensitivities):
            return np.asarray(self.sensitivities.mean(axis=0))
        return np.diff(np.append(self.times, 0.0)) ** 2

    @property
    def noisy(self) -> bool:
        """Whether the sampler adds noise: latents do not follow from those and the outputs before them."""
        return added_noise(self.gram.mean(axis=0), self.steps) > NOISE

    @property
    def errors(self) -> np.ndarray:
        """What forecasts from one or two computed steps are off by, for `best_plan`, with shape (N, N, N).

        Where the sampler adds noise, they use latents: without, they would be off by that noise.
        """
        gram = self.gram.mean(axis=0)
        return pair_errors(gram, latents=True) if self.noisy else pair_errors(self.kernel)

    def save(self, path: str | Path) -> Path:
        """Writes the profile as safetensors."""
        arrays = {
            IN_FILES.get(f.name, f.name): np.ascontiguousarray(getattr(self, f.name))
            for f in fields(self)
            if f.name != "about"
        }
        return write_atomically(path, save(arrays, metadata={"about": json.dumps(self.about)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a profile; `ScheduleError` says what is wrong with it."""
        try:
            check_size(path := locate(path))
            with safe_open(str(path), framework="numpy") as file:
                about = read_about(file)
                names = {f.name: IN_FILES.get(f.name, f.name) for f in fields(cls) if f.name != "about"}
                profile = cls(**{own: file.get_tensor(name) for own, name in names.items()}, about=about)
            profile._check_values()
        except OSError as error:
            raise ScheduleError(f"cannot read the profile {path}: {error.strerror or error}") from None
        except (SafetensorError, ValueError) as error:
            reason = str(error)[:500]
            raise ScheduleError(f"{path} is not a profile ({reason}); remove it and calibrate again") from None
        return profile

    def _check_values(self) -> None:
        for one in fields(self):
            if one.name != "about" and not np.isfinite(getattr(self, one.name)).all():
                raise ValueError(f"{one.name} holds numbers that are not finite")
        check_falling(self.times.tolist())
        if self.times[0] > 1 or self.times[-1] < 0:
            raise ValueError("its times are not in [0, 1]")
        if (self.sensitivities < 0).any():
            raise ValueError("its sensitivities are negative")


def check_size(path: Path) -> None:
    """Raises what a profile cannot be, before its header is parsed: no regular file, or a large one."""
    if path.exists() and not path.is_file():
        raise OSError(0, "not a regular file")
    with path.open("rb") as file:
        size, header = path.stat().st_size, int.from_bytes(file.read(8), "little")
    if size > LARGEST or header > HEADER:
        raise ValueError(f"it has {size:,} bytes, and a header of {header:,}")


def read_about(file: Any) -> dict[str, Any]:
    """Returns what a profile says of itself; `ValueError` where its arrays' names, kinds or shapes cannot be one's."""
    if set(file.keys()) != SHAPES.keys():
        raise ValueError(f"it does not have the arrays {', '.join(SHAPES)}")
    arrays = {name: file.get_slice(name) for name in SHAPES}
    for name, letters in SHAPES.items():
        if len(arrays[name].get_shape()) != len(letters) or arrays[name].get_dtype() != "F64":
            raise ValueError(f"{name} is no array of {len(letters)} dimensions of float64")
    p, n, q = (arrays[name].get_shape()[0] for name in ("gram", "times", "influence"))
    sizes = {"P": p, "N": n, "M": 2 * n, "Q": q}
    for name, letters in SHAPES.items():
        if (shape := arrays[name].get_shape()) != [sizes[letter] for letter in letters]:
            raise ValueError(f"{name} has shape {shape}, which does not agree with {n} times")
    if not (1 <= n <= STEPS and 1 <= p <= PROMPTS and q <= p):
        raise ValueError(f"it has {n} steps, {p} prompts and the sensitivities of {q}")
    about = parse_json((file.metadata() or {}).get("about", "{}").encode())
    if not isinstance(about, dict):
        raise ValueError("it does not say where it came from")
    return dict(check_plain(about))
