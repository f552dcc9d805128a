"""One decision for all ranks that run a denoiser together (`Groups`), and ranks that share a calibration (`Ranks`).

With context parallelism, tensor parallelism or sharded weights (FSDP) every call of the denoiser is made by
several processes at once. If one of them skipped it, the others would wait for ever, or forecast from other
histories. Plans decide by the step alone and exchange nothing. Policies that look at the run read
one number, the largest of a batch: with such a denoiser it is the largest of all ranks.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

Groups: TypeAlias = tuple[Any, ...]  # torch.distributed process groups


def groups_of(denoisers: Iterable[nn.Module]) -> Groups:
    """Returns the process groups that make calls of denoisers together; none costs a look and no more.

    They are told by diffusers' `enable_parallelism`, and by weights that are sharded over a device mesh.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ()
    found: dict[int, Any] = {}
    for denoiser in denoisers:
        config = getattr(denoiser, "_parallel_config", None)
        if (context := getattr(config, "context_parallel_config", None)) is not None:
            group = context._flattened_mesh.get_group()
            found[id(group)] = group
        weights: list[Any] = list(filter(sharded, denoiser.parameters()))
        for weight in weights:
            groups = (weight.device_mesh.get_group(at) for at, how in enumerate(weight.placements) if how.is_shard())
            found |= {id(group): group for group in groups}
    return tuple(group for group in found.values() if dist.get_world_size(group) > 1)


def splits(block: nn.Module) -> bool:
    """Whether a block splits its own input over ranks.

    diffusers' context parallelism splits the sequence before the denoiser, or in front of some of its blocks.
    """
    hooks = getattr(getattr(block, "_diffusers_hook", None), "hooks", {})
    return any(name.startswith("cp_input") for name in hooks)


def sharded(weight: Tensor) -> bool:
    """Whether other processes have parts of a weight (it is a DTensor, whose module is slow to import)."""
    return hasattr(weight, "device_mesh")


def highest(value: Tensor, groups: Groups) -> Tensor:
    """Returns the largest value that any rank has; as it is where there is no group."""
    if groups:
        value = value.clone()
        for group in groups:
            dist.all_reduce(value, dist.ReduceOp.MAX, group)
    return value


TIMEOUT = timedelta(hours=12)  # for one batch of the slowest rank; a rank that died is noticed at once

Given = TypeVar("Given")


class RankError(RuntimeError):
    """Another rank failed, or was lost; the message says which.

    Arguments:
        message: What happened.
        rank: The one that failed; None where the connection was lost.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


@dataclass(frozen=True)
class Failure:
    """What a rank that failed tells the others in place of a result."""

    message: str


@dataclass(frozen=True)
class Ranks:
    """The processes that share a calibration, as torchrun or `accelerate launch` starts them, and which one this is.

    Nothing is ever split but batches: each is run by one rank as a single process would run it. What they give is
    small (statistics, inner products, quality) and is exchanged by a gloo group on the CPU, whatever the accelerators
    are. It is put together in the order of the batches, so the result does not depend on how many ranks there are, to
    the bit where a batch gives the same bits on each of them.
    """

    rank: int = 0  # the number of this process, from 0
    size: int = 1  # how many there are
    group: Any = None  # a gloo process group of all of them; None for one process, which exchanges nothing
    device: str | None = None  # where this one is to compute; None leaves that to others

    def own(self, count: int) -> range:
        """Returns which of `count` jobs are this rank's."""
        return range(self.rank, count, self.size)

    def exchange(self, value: Given) -> list[Given]:
        """Returns what all ranks give, in their order; `RankError` where one of them failed or was lost."""
        found: list[Any] = [value]
        if self.size > 1:
            found = [None] * self.size
            try:
                dist.all_gather_object(found, value, group=self.group)
            except RuntimeError as error:
                raise RankError(f"rank {self.rank} lost the connection to another rank: {error}") from error
        for rank, other in enumerate(found):
            if isinstance(other, Failure):
                raise RankError(f"rank {rank} of {self.size} failed: {other.message}", rank)
        return found

    def first(self, value: Given) -> Given:
        """Returns what rank 0 gives; the others' values are ignored. For what is too large to exchange."""
        self.exchange(None)  # a failure is told here
        if self.size == 1:
            return value
        found = [value if self.rank == 0 else None]
        try:
            dist.broadcast_object_list(found, src=0, group=self.group)
        except RuntimeError as error:
            raise RankError(f"rank {self.rank} lost the connection to rank 0: {error}") from error
        return found[0]  # type: ignore[return-value]

    def each(
        self, count: int, work: Callable[[int], Given], progress: Callable[[int], None] = lambda done: None
    ) -> list[Given]:
        """Does jobs 0 to `count` - 1, each on one rank, and returns all results on all ranks.

        Ranks meet after each round, so a failure ends all of them within one job.
        """
        results: list[Any] = []
        for start in range(0, count, self.size):
            number = start + self.rank
            found = self.exchange(work(number) if number < count else None)
            results += found[: count - start]
            progress(len(results))
        return results

    def tell(self, error: Exception) -> None:
        """Tells the others of a failure of this rank; `RankError` where another one failed too, and speaks for all."""
        try:
            self.exchange(Failure(str(error) or type(error).__name__))
        except RankError as found:
            if found.rank not in (self.rank, None):
                raise


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Joins the processes that torchrun or `accelerate launch` started; one process stays alone.

    An error inside ends all ranks: it is raised where it happened, and as `RankError` on the others. Of
    several the lowest rank raises its own.

    Raises:
        ImportError: There are others, and accelerate is not installed.

    Example:
        >>> with joined() as ranks:
        ...     schedule = adaptcache.calibrate(pipe, prompts, speed=2.8, ranks=ranks)
        ...     if ranks.rank == 0:
        ...         schedule.save("mine.json")
    """
    ranks = _join()
    try:
        yield ranks
        ranks.exchange(None)  # none is done before all are
    except RankError:
        raise
    except Exception as error:
        ranks.tell(error)
        raise


def _join() -> Ranks:
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return ALONE
    device = None
    if not dist.is_initialized():
        try:
            from accelerate import PartialState
        except ImportError:
            raise ImportError(
                "calibrating with several processes needs accelerate: pip install 'adaptcache-diffusers[distributed]'"
            ) from None
        device = str(PartialState(timeout=TIMEOUT).device)
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), group, device)
