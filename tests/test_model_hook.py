"""`adaptcache.hook`: a schedule on a denoiser alone gives what `attach` gives, or refuses."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import STEPS, embedded, schedule_of, tiny_flux
from test_export_table import PLAN, matched

import adaptcache
from adaptcache.engines.diffusers.model_hook import EXACT
from adaptcache.errors import AttachError, LoopError, ScheduleError
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.forecasts.frequency import Frequency
from adaptcache.forecasts.matched import Matched
from adaptcache.policies.drift import Drift
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.pipelines.table import built, generated, planned


def fitted(pipe: Any, **changes: Any) -> Schedule:
    made = {"pipeline": type(pipe).__name__}
    return schedule_of(pipe, PLAN, forecast=matched()).model_copy(update={"made": made, **changes})


def run(pipe: Any, guidance: float = 1.0, steps: int = STEPS, seed: int = 0) -> torch.Tensor:
    negative = {f"negative_{name}": value for name, value in embedded(1, seed=9)[0].items()} if guidance > 1 else {}
    return pipe(
        **embedded(1)[0], **negative, true_cfg_scale=guidance, num_inference_steps=steps, height=16, width=16,
        output_type="latent", generator=torch.Generator().manual_seed(seed), return_dict=False,
    )[0]  # fmt: skip


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_gives_what_attach_gives(guidance: float) -> None:
    pipe = tiny_flux()
    schedule, full = fitted(pipe), run(pipe, guidance)
    with adaptcache.attach(pipe, schedule, allow=("guidance",)):
        expected = run(pipe, guidance)
    with adaptcache.hook(pipe.transformer, schedule) as hooked:
        for _ in range(2):  # the second run starts afresh
            torch.testing.assert_close(run(pipe, guidance), expected, atol=1e-5, rtol=1e-5)
    branches = 2 if guidance > 1 else 1
    assert (hooked.computed, hooked.skipped) == (2 * branches * 4, 2 * branches * 4)
    assert torch.equal(run(pipe, guidance), full)  # nothing is left behind


def test_weights_at_computed_steps_are_used_too() -> None:
    pipe, plain = tiny_flux(), matched()
    row = (0.9, 0.1, 0.01, -0.01)
    rows = tuple(row if i == 3 else old for i, old in enumerate(plain.table[0][0]))
    schedule = fitted(pipe)
    rule = Rule(policy=schedule.rules[0].policy, forecast=plain.model_copy(update={"table": ((rows,),)}))
    schedule = schedule.model_copy(update={"rules": (rule,)})
    with adaptcache.attach(pipe, fitted(pipe)):
        without = run(pipe)
    with adaptcache.attach(pipe, schedule):
        expected = run(pipe)
    with adaptcache.hook(pipe.transformer, schedule):
        torch.testing.assert_close(run(pipe), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, without, atol=1e-3)


def random_weights(plan: list[int], steps: int) -> Matched:
    """Weights of the last computed output and of the latents."""
    generator = torch.Generator().manual_seed(0)
    table = (torch.rand(steps, 3, generator=generator) * 0.2 + 0.1).tolist()
    rows = tuple(() if i in plan else tuple(row) for i, row in enumerate(table))
    return Matched(history=1, features=("x", "x0"), table=((rows,),))


# The others of `EXACT` agree to 2e-6 too: they are tried by hand, as each costs a second.
CASES = ("Flux, two branches", "Flux 2", "Wan 2.1", "Stable Diffusion 3", "LTX-Video")


@pytest.mark.parametrize("name", CASES)
def test_pipelines_that_are_called_exact_are(name: str) -> None:
    setup = built(name)
    assert type(setup.pipe).__name__ in EXACT
    plain = planned(setup, [0, 2])
    steps = len(plain.grid.times)
    schedule = planned(setup, [0, 2], random_weights([0, 2], steps)).model_copy(
        update={"made": {"pipeline": type(setup.pipe).__name__}}
    )
    with adaptcache.attach(setup.pipe, schedule):
        expected = generated(setup)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adaptcache.hook(setup.pipe.transformer, schedule) as hooked:
            found = generated(setup)
    assert hooked.skipped and hooked.computed
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_run_on_another_grid_is_computed_in_full_and_warned_of() -> None:
    pipe = tiny_flux()
    full = run(pipe, steps=12)
    with adaptcache.hook(pipe.transformer, fitted(pipe)) as hooked:
        with pytest.warns(UserWarning, match="not step 1 of the schedule's 8: this run is computed in full") as seen:
            assert torch.equal(run(pipe, steps=12), full)
        assert len(seen) == 1 and hooked.skipped == 0
        run(pipe)
        assert hooked.skipped == 4


def test_branches_that_cannot_be_told_apart_are_refused() -> None:
    pipe = tiny_flux()
    kinds = {"hidden_states": torch.zeros(1, 4, 16), "timestep": torch.ones(1), "return_dict": False}
    own = embedded(1)[0]
    rest = {"encoder_hidden_states": own["prompt_embeds"], "pooled_projections": own["pooled_prompt_embeds"],
            "txt_ids": torch.zeros(6, 3), "img_ids": torch.zeros(4, 3)}  # fmt: skip
    with adaptcache.hook(pipe.transformer, fitted(pipe)), torch.no_grad():
        pipe.transformer(**kinds, **rest)
        with pytest.raises(LoopError, match="called twice at time 1 in one cache context"):
            pipe.transformer(**kinds, **rest)


def test_what_it_could_not_be_exact_for_is_refused() -> None:
    pipe = tiny_flux()
    model, good = pipe.transformer, fitted(pipe)
    for changes, says in (
        ({"made": {"pipeline": "QwenImagePipeline"}}, "was fitted with QwenImagePipeline, whose guidance and signs"),
        ({"made": {}}, "an unknown pipeline"),
        ({"made": {"pipeline": "FluxPipeline", "call": {"guidance_rescale": 0.7}}}, "guidance_rescale=0.7"),
        ({"denoiser": good.denoiser.model_copy(update={"class_name": "Other"})}, "was fitted on a Other"),
        ({"rules": (Rule(policy=Drift(threshold=0.1), forecast=Extrapolate(order=0)),)}, "no plan of whole steps"),
        ({"rules": (Rule(policy=good.rules[0].policy, forecast=Frequency()),)}, "no weighted sum"),
    ):
        with pytest.raises(ScheduleError, match=says):
            adaptcache.hook(model, good.model_copy(update=changes))
    adaptcache.hook(model, good.model_copy(update={"made": {}}), linear=True).close()
    with adaptcache.hook(model, good), pytest.raises(AttachError, match="has a schedule or a cache already"):
        adaptcache.hook(model, good)
