"""Compatibility: every difference is found, graded and said in one readable message."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import CALL, STEPS, embedded, schedule_of, tiny_flux
from diffusers import (
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    UniPCMultistepScheduler,
)

import adaptcache
from adaptcache.engines.diffusers.compatibility import graded
from adaptcache.engines.diffusers.identity import provenance
from adaptcache.errors import ScheduleError
from adaptcache.forecasts.matched import Matched
from adaptcache.schedule.findings import Finding, Grade, explain_findings, worst_grade
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule


def fitted(pipe: Any, **made: Any) -> Schedule:
    """A schedule that knows where it comes from, as calibration writes it."""
    known = {**provenance(pipe), "call": dict(CALL.arguments), **made}
    return schedule_of(pipe, [0, 1, 4]).model_copy(update={"made": known})


def grades(findings: list[Finding]) -> dict[str, Grade]:
    return {finding.what: finding.grade for finding in findings}


def test_where_nothing_differs_nothing_is_found(pipe: Any) -> None:
    assert graded(fitted(pipe), pipe, CALL.arguments, STEPS) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adaptcache.attach(pipe, fitted(pipe), strict=True).close()


def test_a_calibrated_schedule_fits_its_own_pipeline_after_loading(pipe: Any, tmp_path: Any) -> None:
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    made = adaptcache.calibrate(pipe, embedded(2), steps=6, budget=0.5, call=CALL.arguments)
    loaded = Schedule.load(made.save(tmp_path / "mine.json"))
    assert graded(loaded, pipe, CALL.arguments, 6) == []
    assert loaded.made["scheduler"]["prediction_type"] == "flow_prediction"
    assert loaded.made["loras"] == [] and loaded.made["dtype"] == "float32"


def test_other_weights_warn_and_another_configuration_hides_them(pipe: Any) -> None:
    assert grades(graded(fitted(tiny_flux(seed=1)), pipe)) == {"weights": Grade.WARNED}
    wider = fitted(tiny_flux(num_layers=2))
    assert grades(graded(wider, pipe)) == {"configuration": Grade.WARNED}
    with pytest.warns(UserWarning, match=r"by-hand was fitted on another configuration of Flux"):
        adaptcache.attach(pipe, wider).close()
    with pytest.raises(ScheduleError, match="calibrate again"):
        adaptcache.attach(pipe, wider, strict=True)


def test_a_lora_is_named(pipe: Any) -> None:
    own = fitted(pipe)
    with torch.no_grad():
        pipe.transformer.x_embedder.weight.add_(0.1)
    pipe.transformer.peft_config = {"watercolour": object()}  # what peft leaves on a module
    (finding,) = graded(own, pipe)
    assert (finding.what, finding.grade) == ("LoRA", Grade.WARNED)
    assert "LoRAs none and watercolour" in finding.says


def test_another_precision_of_the_same_checkpoint_has_its_weights_and_not_its_decibels(pipe: Any) -> None:
    pipe.register_to_config(_name_or_path="user/flux")
    own = fitted(pipe)
    half = pipe.to(torch.bfloat16)
    assert grades(graded(own, half)) == {"weights": Grade.FINE, "dtype": Grade.WARNED}
    half.register_to_config(_name_or_path="user/other")
    assert grades(graded(own, half))["weights"] == Grade.WARNED


def test_offloaded_weights_are_not_called_other_weights(pipe: Any) -> None:
    own = fitted(pipe)
    pipe.transformer.to("meta")
    assert grades(graded(own, pipe)) == {"weights": Grade.FINE}


def test_another_pipeline_of_the_same_denoiser_warns(pipe: Any) -> None:
    other = FluxImg2ImgPipeline(**pipe.components)
    (finding,) = graded(fitted(pipe), other)
    assert (finding.what, finding.grade) == ("pipeline", Grade.WARNED)
    assert "fitted with a FluxPipeline, this is a FluxImg2ImgPipeline" in finding.says


def test_schedulers_are_graded_by_what_changes(pipe: Any) -> None:
    own = fitted(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    (finding,) = graded(own, pipe)
    assert (finding.what, finding.grade) == ("scheduler", Grade.REPLANNED)
    assert "shift 1.0 and now 3.0" in finding.says
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    assert grades(graded(own, pipe)) == {"scheduler": Grade.WARNED}
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    assert grades(graded(own, pipe)) == {"scheduler": Grade.WARNED}
    own = fitted(pipe)
    pipe.scheduler = EulerAncestralDiscreteScheduler(prediction_type="v_prediction")
    assert grades(graded(own, pipe)) == {"scheduler": Grade.REFUSED}
    with pytest.raises(ScheduleError, match="prediction_type epsilon and now v_prediction"):
        adaptcache.attach(pipe, own)


def test_guidance_size_and_steps_are_compared_with_a_call(pipe: Any) -> None:
    own = fitted(pipe)
    found = graded(own, pipe, {**CALL.arguments, "height": 32, "true_cfg_scale": 7.0}, steps=20)
    assert grades(found) == {"guidance": Grade.WARNED, "size": Grade.WARNED, "steps": Grade.REPLANNED}
    assert grades(graded(own, pipe, {**CALL.arguments, "true_cfg_scale": 1.0})) == {}  # the default
    assert (
        grades(graded(own, pipe, {**CALL.arguments, "guidance_scale": 9.0})) == {}
    )  # this denoiser has no input for it
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    found = graded(fitted(pipe), pipe, {**CALL.arguments, "height": 32})
    assert grades(found) == {"size": Grade.REPLANNED}


def test_matched_weights_without_a_kernel_are_refused_other_steps(pipe: Any) -> None:
    own = fitted(pipe)
    rows = tuple(() if i in (0, 1, 4) else (1.0, 0.0, 0.0) for i in range(STEPS))
    rule = Rule(policy=own.rules[0].policy, forecast=Matched(history=1, table=((rows,),)))
    found = graded(own.model_copy(update={"rules": (rule,)}), pipe, steps=20)
    assert grades(found) == {"steps": Grade.REFUSED}
    assert "carries no kernel" in found[0].says


def test_what_a_schedule_does_not_say_is_not_compared(pipe: Any) -> None:
    silent = schedule_of(tiny_flux(seed=1), [0])
    unknown = silent.denoiser.model_copy(update={"config_hash": "", "weights_hash": ""})
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert graded(silent.model_copy(update={"denoiser": unknown}), pipe, {"guidance_scale": 9.0}) == []


def test_several_differences_are_one_message_worst_first(pipe: Any) -> None:
    own = fitted(tiny_flux(seed=1), dtype="bfloat16")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = graded(own, pipe)
    assert worst_grade(found) == Grade.WARNED
    lines = explain_findings(own, found).splitlines()
    assert lines[0] == "by-hand differs from this pipeline in 3 ways:"
    assert [line.split()[0] for line in lines[1:]] == ["warned", "warned", "re-planned"]
    with pytest.warns(UserWarning, match=r"differs from this pipeline in 3 ways") as caught:
        adaptcache.attach(pipe, own).close()
    assert len(caught) == 1 and caught[0].filename == __file__


def test_grading_changes_nothing(pipe: Any) -> None:
    own, before = fitted(tiny_flux(seed=1)), CALL(pipe, embedded(1))
    graded(own, pipe, CALL.arguments, STEPS)
    assert torch.equal(CALL(pipe, embedded(1)), before)
