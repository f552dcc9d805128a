"""The errors adaptcache raises on purpose; each message names the value and the cure."""

import difflib
from collections.abc import Collection


class ScheduleError(ValueError):
    """A schedule that cannot be read, or that does not fit the pipeline or the run."""


class AttachError(RuntimeError):
    """A pipeline that cannot be watched, or that was changed or shared while it was."""


class LoopError(AttachError, ValueError):
    """A denoising loop that cannot be followed."""


def suggest(name: str, known: Collection[str]) -> str:
    """Returns which known names a misspelt one may stand for, or what names there are."""
    by_case = {one.casefold(): one for one in reversed([*known])}  # of names that differ in case only: the first
    near = [by_case[one] for one in difflib.get_close_matches(name.casefold(), by_case, 3, 0.5)]
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"


LESS_MEMORY = (
    "less memory is needed with a smaller batch (batch_size=1, --batch-size 1), smaller outputs (height=512, "
    "--set height=512, fewer frames) or offloaded weights (pipe.enable_model_cpu_offload())"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is spent, on whichever device."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(some in str(error) for some in words)
    )
