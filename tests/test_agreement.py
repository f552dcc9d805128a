"""Ranks that run one denoiser together skip the same steps, and plans cost no word between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import CALL, STEPS, embedded, schedule_of, tiny_flux

import adaptcache
from adaptcache.distributed import groups_of, highest
from adaptcache.errors import AttachError
from adaptcache.policies.base import Policy
from adaptcache.policies.codebook import Codebook
from adaptcache.policies.plan import Plan
from adaptcache.policies.probe import Probe
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from adaptcache.step import worst
from tests.calls import Call
from tests.pipelines.video import wan21
from tests.processes import launch

Computed = list[int]


def by(policy: Policy, pipe: Any, site: str = "step") -> Schedule:
    plain = schedule_of(pipe, [0, 4])
    return plain.model_copy(update={"rules": (Rule(site=site, policy=policy, forecast=plain.rules[0].forecast),)})


def computed(pipe: Any, schedule: Schedule, seed: int) -> Computed:
    """Returns which steps a run computes, with noise and a prompt of its own for each seed."""
    with adaptcache.attach(pipe, schedule) as handle:
        Call(STEPS, CALL.arguments, seed)(pipe, embedded(1, seed=seed + 1))
        return handle.report().computed


def with_context_parallelism(pipe: Any) -> None:
    """Splits the sequence over both ranks, as diffusers does it (which asks for an accelerator's number)."""
    from diffusers import ContextParallelConfig

    torch.accelerator.device_count = lambda: 1
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def with_sharded_weights(pipe: Any) -> None:
    """Leaves each rank half of each weight (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(pipe.transformer, mesh=init_device_mesh("cpu", (2,)))


def decided(
    parallel: Callable[[Any], None], policies: list[Policy], site: str
) -> list[tuple[Computed, Computed, int]]:
    """For each policy: the steps this rank computes alone, and with the other; words between them."""
    dist.init_process_group("gloo")
    rank, words, pipe, together = dist.get_rank(), [], tiny_flux(), tiny_flux()
    said = dist.all_reduce
    parallel(together)

    def counted(*given: Any, **named: Any) -> Any:
        words.append(1)
        return said(*given, **named)

    dist.all_reduce = counted
    found = []
    for policy in policies:
        alone, before = computed(pipe, by(policy, pipe, site), rank), len(words)
        found.append((alone, computed(together, by(policy, pipe, site), rank), len(words) - before))
    dist.barrier()
    return found


PLAN = Plan.of([0, 3, 5], tuple(1 - i / STEPS for i in range(STEPS)))
THRESHOLDS = [Probe(threshold=value, on="input") for value in torch.linspace(0.1, 0.9, 9).tolist()]


@pytest.mark.parametrize(
    ("parallel", "site"),
    [
        (with_context_parallelism, "step"),
        (with_sharded_weights, "step"),
        (with_context_parallelism, "blocks"),
    ],
)
def test_ranks_with_different_inputs_compute_the_same_steps(parallel: Callable[[Any], None], site: str) -> None:
    policies: list[Policy] = [PLAN, *THRESHOLDS, Codebook(scale=3.0)]
    first, second = launch(decided, 2, parallel, policies, site)
    assert first[0] == ([0, 3, 5], [0, 3, 5], 0) == second[0]  # a plan needs no word
    assert any(a[0] != b[0] for a, b in zip(first[1:], second[1:], strict=True))  # alone they differ
    for (_, one, words), (_, other, _) in zip(first[1:], second[1:], strict=True):
        assert one == other and 0 < words < STEPS


def refused_on_wan() -> str:
    """Returns what attaching says to a denoiser whose first block splits the sequence."""
    dist.init_process_group("gloo")
    pipe = wan21().pipe
    with_context_parallelism(pipe)
    schedule = Schedule.of("fbcache", threshold=0.1)
    try:
        with adaptcache.attach(pipe, schedule):
            return "attached"
    except AttachError as error:
        return str(error)
    finally:
        dist.barrier()


def test_blocks_that_split_their_input_themselves_are_refused() -> None:
    for said in launch(refused_on_wan, 2):
        assert "in front of a block of WanTransformer3DModel" in said and "use the site 'step'" in said


def test_where_nobody_shares_a_denoiser_nobody_is_asked() -> None:
    assert groups_of([tiny_flux().transformer]) == ()
    value = torch.tensor(2.0)
    assert highest(value, ()) is value and worst(torch.tensor([1.0, 3.0]), ()) == 3.0
    assert worst(torch.tensor([1.0, float("nan")]), ()) == float("inf")
