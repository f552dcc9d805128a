"""One decision for all ranks that run a denoiser together.

With context parallelism, tensor parallelism or sharded weights (FSDP) every call of the denoiser is made by
several processes at once. If one of them skipped it, the others would wait for ever, or forecast from other
histories. Plans decide by the step alone and need no word with anybody. Policies that look at the run read
one number, the largest of a batch: with such a denoiser it is the largest of all ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import Tensor, nn

__all__ = ["Groups", "groups_of", "highest", "sharded", "splits"]

Groups: TypeAlias = tuple[Any, ...]  # torch.distributed process groups


def groups_of(denoisers: Iterable[nn.Module]) -> Groups:
    """Returns the process groups that make calls of denoisers together; none costs a look and no more.

    They are told by diffusers' `enable_parallelism`, and by weights that are sharded over a device mesh.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ()
    found: dict[int, Any] = {}
    for denoiser in denoisers:
        config = getattr(denoiser, "_parallel_config", None)
        if (context := getattr(config, "context_parallel_config", None)) is not None:
            group = context._flattened_mesh.get_group()
            found[id(group)] = group
        for weight in filter(sharded, denoiser.parameters()):
            found |= {id(group): group for group in _shards(weight)}
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


def _shards(weight: Any) -> list[Any]:
    """Returns the groups that have a part of a weight each."""
    places = enumerate(weight.placements)
    return [weight.device_mesh.get_group(dim) for dim, how in places if how.is_shard()]


def highest(value: Tensor, groups: Groups) -> Tensor:
    """Returns the largest value that any rank has; as it is where there is no group."""
    if groups:
        import torch.distributed as dist

        value = value.clone()
        for group in groups:
            dist.all_reduce(value, dist.ReduceOp.MAX, group)
    return value
