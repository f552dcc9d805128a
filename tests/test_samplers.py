"""Another sampler in a pipeline's stead: the same model, the same noise levels, and it works everywhere."""

from __future__ import annotations

import pytest
import torch
from conftest import CALL, embedded, tiny_flux

from adaptcache.engines.diffusers.calls import spread
from adaptcache.engines.diffusers.sampler import sampler, with_sampler

DPM = "DPMSolverMultistepScheduler"


@pytest.mark.parametrize("kind", [DPM, "UniPCMultistepScheduler"])
def test_a_flow_model_runs_with_another_sampler_to_the_same_solution(kind: str) -> None:
    from dataclasses import replace

    many = replace(CALL, steps=60)
    truth = many(tiny_flux(), embedded(1))
    other = many(with_sampler(tiny_flux(), kind), embedded(1))
    few = CALL(tiny_flux(), embedded(1))
    assert (other - truth).norm() < 0.5 * (few - truth).norm()
    assert not torch.equal(other, truth)


def test_a_sampler_made_from_another_keeps_the_shift_and_back() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    first = FlowMatchEulerDiscreteScheduler(shift=3.0)
    second = sampler(DPM, first)
    third = sampler("UniPCMultistepScheduler", second)
    assert second.config.flow_shift == third.config.flow_shift == 3.0
    assert sampler("FlowMatchEulerDiscreteScheduler", third).config.shift == 3.0
    assert type(second).__name__ == DPM


def test_what_cannot_be_is_said() -> None:
    pipe = tiny_flux()
    with pytest.raises(LookupError, match="no scheduler 'DPM'"):
        with_sampler(pipe, "DPM")
    with pytest.raises(ValueError, match="DDIMScheduler cannot run a flow-matching model"):
        with_sampler(pipe, "DDIMScheduler")
    before = pipe.scheduler
    assert with_sampler(pipe, None).scheduler is before
    assert with_sampler(pipe, "FlowMatchEulerDiscreteScheduler").scheduler is before


def test_a_model_that_is_told_sigmas_in_a_way_of_its_own_is_not_given_another_sampler() -> None:
    import diffusers

    cosine, euler = diffusers.CosineDPMSolverMultistepScheduler(), diffusers.EDMEulerScheduler()
    for kind, before in ((DPM, cosine), ("EDMEulerScheduler", cosine), ("UniPCMultistepScheduler", euler)):
        with pytest.raises(ValueError, match=f"{kind} cannot run a model of {type(before).__name__}"):
            sampler(kind, before)
    assert type(sampler("EDMDPMSolverMultistepScheduler", euler)).__name__ == "EDMDPMSolverMultistepScheduler"


def test_a_negative_prompt_serves_a_whole_batch() -> None:
    given = {"negative_prompt": "blurry", "style": "oil"}
    assert spread(given, 3) == {"negative_prompt": ["blurry"] * 3, "style": "oil"}
    assert spread(given, 1) == given
