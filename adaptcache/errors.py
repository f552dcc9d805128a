"""The errors adaptcache raises on purpose; each message names the value and the cure."""


class ScheduleError(ValueError):
    """A schedule that cannot be read, or that does not fit the pipeline or the run."""


class AttachError(RuntimeError):
    """A pipeline that cannot be watched, or that was changed or shared while it was."""


class LoopError(AttachError, ValueError):
    """A denoising loop that cannot be followed."""
