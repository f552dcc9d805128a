"""The errors adaptcache raises on purpose; each message names the value and the cure."""


class ScheduleError(ValueError):
    """A schedule that cannot be read, or that does not fit the pipeline or the run."""


class AttachError(RuntimeError):
    """A pipeline that cannot be watched, or that was changed or shared while it was."""


class LoopError(AttachError, ValueError):
    """A denoising loop that cannot be followed."""


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
