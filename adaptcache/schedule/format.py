"""What the parts of a schedule are made of: their base, and the types of their fields."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, ValidationError, model_validator
from typing_extensions import TypedDict

from ..errors import ScheduleError
from ..files import dump_json, write_atomically
from ..fitting.kernel import Array, resample_kernel
from ..limits import (
    KERNEL_STEPS,
    NODES,
    STEPS,
    FrozenModel,
    check_falling,
    check_name,
    check_plain,
    first_fault,
    parse_json,
    read_bytes,
)  # fmt: skip
from ..step import NEAR

EULER = "FlowMatchEulerDiscreteScheduler"  # its times are its sigmas, and its steps go straight

Time = Annotated[float, Field(ge=0, le=1)]
Times = Annotated[tuple[Time, ...], Field(min_length=1, max_length=STEPS), AfterValidator(check_falling)]
Name = Annotated[str, AfterValidator(check_name)]
Line = Annotated[str, Field(max_length=4096)]  # as long as a path may be
Count = Annotated[int, Field(ge=0, le=2**53)]
Share = Annotated[float, Field(gt=0, lt=1)]


def check_summary(summary: dict[str, float]) -> dict[str, float]:
    """Returns the figures of a metric, if they are the two that are shown."""
    if summary.keys() != {"mean", "p05"}:
        raise ValueError("needs 'mean' and 'p05'")
    return summary


Summary = Annotated[dict[str, FiniteFloat], AfterValidator(check_summary)]


def same_grid(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two grids of times are the same."""
    return len(a) == len(b) and all(abs(s - t) < NEAR for s, t in zip(a, b, strict=True))


def same_run(times: Sequence[float], grid: Sequence[float], left: int = 0) -> bool:
    """Whether a run whose last `left` steps are not taken goes through the times of a grid."""
    return same_grid(times[: len(times) - left], grid)


class Part(FrozenModel):
    """A part of a schedule: frozen, and unknown keys are errors."""

    def data(self) -> dict[str, Any]:
        """Returns it as files have it: plain values under the names of the format, without what is not known."""
        return self.model_dump(by_alias=True, exclude_none=True)

    def save(self, path: str | Path) -> Path:
        """Writes it, whole or not at all. The same values always give the same bytes."""
        return write_atomically(path, dump_json(self.data()))


def read_artifact(path: str | Path, what: str, verb: str, largest: int, nodes: int = NODES) -> Any:
    """Returns what a file of JSON holds that a command (the `verb`) writes, within limits of bytes and nodes.

    Raises:
        ScheduleError: It cannot be read, or is not JSON.
    """
    try:
        return parse_json(read_bytes(path, largest), nodes)
    except OSError as error:
        raise ScheduleError(f"cannot read {path}: {error.strerror}; `adaptcache {verb}` writes one") from None
    except ValueError as error:
        raise ScheduleError(f"{path} is not JSON ({error}): is it a {what} file?") from None


# What a schedule was fitted on: the denoiser, the steps, and what a full run looked like there.


class Denoiser(Part):
    """What the schedule was fitted on.

    Arguments:
        class_name: The class of the denoiser; empty where nothing was fitted: any will do.
        config_hash: Digest of its configuration.
        weights_hash: Digest of a sample of its weights, LoRA included.
        checkpoint: Where the weights came from.
    """

    class_name: Line = Field("", alias="class")
    config_hash: Line = ""
    weights_hash: Line = ""
    checkpoint: Line = ""


class Grid(Part):
    """The steps it was fitted on: the scheduler's class, and N times in [0, 1], falling.

    Both are empty where nothing was fitted: the schedule runs on any grid. Where the times are the schedule's own, a
    run has them instead of those of the full run, `full`, which the pipeline is called with.
    """

    scheduler: Line = ""
    times: Annotated[tuple[Time, ...], Field(max_length=STEPS), AfterValidator(check_falling)] = ()
    full: Times | None = None

    @property
    def steps(self) -> int:
        """How many steps a pipeline is called with."""
        return len(self.full or self.times)

    @model_validator(mode="after")
    def _has_own_times(self) -> Self:
        if self.full and not self.times:
            raise ValueError("own times are missing")
        return self


class Kernel(Part):
    """Inner products of the guided outputs of a full run, from which it is planned anew on other grids.

    Arguments:
        times: N falling times.
        gram: Mean inner products with shape (N, N), after division by the mean norm.
        sensitivity: What an error at each step does to the end result, with shape (N,).
    """

    times: Times
    gram: Annotated[
        tuple[Annotated[tuple[FiniteFloat, ...], Field(max_length=KERNEL_STEPS)], ...], Field(max_length=KERNEL_STEPS)
    ]
    sensitivity: Annotated[tuple[Annotated[FiniteFloat, Field(ge=0)], ...], Field(max_length=KERNEL_STEPS)]

    @model_validator(mode="after")
    def _square(self) -> Self:
        n = len(self.times)
        if len(self.gram) != n or any(len(row) != n for row in self.gram) or len(self.sensitivity) != n:
            raise ValueError(f"the kernel of {n} times needs {n} x {n} products and {n} sensitivities")
        return self

    def on_grid(self, times: Sequence[float]) -> tuple[Array, Array]:
        """Returns inner products and sensitivities on a grid with shape (M,): with shapes (M, M) and (M,).

        Beyond the measured times the outputs go on as they end there. Sensitivities, which must not become
        negative, stay what they are at the ends.
        """
        gram, sensitivity = np.array(self.gram), np.array(self.sensitivity)
        if same_grid(self.times, times):
            return gram, sensitivity
        moved = np.interp(times, self.times[::-1], sensitivity[::-1])
        return resample_kernel(gram, np.array(self.times), np.array(times)), moved


# Where a schedule came from: most of it is for people.

Table = dict[str, Any] | None


_Component = TypedDict("_Component", {"class": str, "dtype": str, "config": str, "weights": str, "settings": str})
_Guider = TypedDict("_Guider", {"class": str, "scale": float})
_Model = TypedDict("_Model", {"weights_hash": str, "config_hash": str})  # noqa: UP013 - of ComfyUI, like the others


class Made(BaseModel):
    """What is read back of it, to say what differs."""

    pipeline: str = ""
    dtype: str = ""
    config: Table = None
    call: Table = None
    scheduler: Table = None
    components: dict[str, _Component] | None = None
    guiders: dict[str, _Guider] | None = None
    loras: Sequence[str] = ()
    branches: Sequence[float] | None = None
    model: _Model | None = None


def check_made(made: dict[str, Any]) -> dict[str, Any]:
    """Returns what is known of where a schedule came from, if it is plain and what is read back of it can be read."""
    try:
        Made.model_validate(check_plain(made), strict=True)
    except ValidationError as error:
        raise ValueError(first_fault(error, "made")) from None
    return made


# How good a schedule is, as it was measured.


class Certificate(Part):
    """What was tested on held-out prompts, and what came of it."""

    target: FiniteFloat  # decibels (PSNR against the full run with the same noise) that a prompt should reach
    max_failure_rate: Share = Field(alias="at_most")  # the share of prompts that may stay below it
    confidence: Share  # how sure the statement is
    prompts: Line  # the name of the prompt set
    # how many held-out prompts were tested; subjects, where prompts vary them
    n: Annotated[int, Field(ge=1, le=2**53)]
    # "subjects" where `n` counts them, each by the worst of its prompts; None where prompts count
    unit: Literal["subjects"] | None = None
    # the position of the fastest setting that passed, counted from the slowest (0); None where not even that did
    certified: Annotated[int, Field(ge=0, le=4096)] | None = None
    # what that setting is called; where none passed, the one that failed
    setting: Annotated[str, Field(max_length=200)]
    failures: Count  # how many of these stay below the target in that setting
    # the upper bound of their share, at this confidence for that setting alone
    upper: Annotated[float, Field(ge=0, le=1)]

    @property
    def sentence(self) -> str:
        """What is known, and what is not covered, for people."""
        unit, worst = self.unit or "prompts", ", by the worst of their prompts" if self.unit else ""
        claim = f"at most {100 * self.max_failure_rate:g} % of {unit} fall below {self.target:g} dB{worst}"
        counted = f"{self.failures} of {self.n}{f' {self.unit}' if self.unit else ''}"
        tested = f"with {self.setting} {counted} did, of {self.prompts}"
        sure = f"{100 * self.confidence:g} % confidence"
        if self.certified is None:
            return f"Not certified with {sure} that {claim}: {tested}."
        return (
            f"With {sure} {claim}: {tested}. This covers prompts drawn like these, with this checkpoint, "
            "call and steps: no other kind of prompt, no other weights or LoRA, no other size or guidance."
        )

    def __str__(self) -> str:
        return self.sentence


class Baseline(Part):
    """What as many plain steps as the schedule makes calls are worth, on the same prompts."""

    steps: Count  # how many steps
    psnr: Summary  # decibels against the full run with the same noise: mean, and 5th percentile over prompts


class Cell(Part):
    """What was measured under other arguments of the call than those of the calibration."""

    changed: Annotated[dict[str, Any], AfterValidator(check_plain)]  # the arguments that differ
    n: Count  # how many held-out prompts
    calls: tuple[Count, Count]  # steps whose denoiser is called, of all steps
    psnr: Summary  # decibels against the full run under the same arguments, with the same noise
    baseline: Baseline | None = None  # the same of as many plain steps


class Evidence(Part):
    """What was measured on prompts that were not used for fitting.

    Arguments:
        prompts: The name of the prompt set.
        n: How many of its held-out prompts.
        calls: Steps whose denoiser is called, of all steps.
        psnr: Decibels against the full run with the same noise: mean, and 5th percentile over prompts.
        ssim: The same for structural similarity, where it was measured.
        speed: All steps over computed steps.
        certificate: What was tested of a quality target.
        verdict: Why nothing is skipped, or should be, where that is the result.
        baseline: What as many plain steps are worth.
        precision_floor: Decibels of full runs against themselves with the last bit of each output moved: what is above
            is rounding. None where that was not measured.
        matrix: What was measured under other arguments.
    """

    prompts: Line
    n: Count
    calls: tuple[Count, Count]
    psnr: Summary
    ssim: Summary | None = None
    speed: FiniteFloat
    certificate: Certificate | None = None
    verdict: Line | None = None
    baseline: Baseline | None = None
    precision_floor: FiniteFloat | None = None
    matrix: Annotated[tuple[Cell, ...], Field(max_length=64)] | None = None

    @property
    def lead(self) -> dict[str, float] | None:
        """Decibels over as many plain steps, of the mean and of the 5th percentile."""
        plain = self.baseline
        return {key: value - plain.psnr[key] for key, value in self.psnr.items()} if plain else None
