"""Serving engines run schedules with their weights: as `attach` does, request by request.

Each test runs on stand-ins of the engines' interfaces, and on the classes of their wheels where these are on the path
(`make contracts`).
"""

from __future__ import annotations

import importlib
import inspect
import json
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STEPS, embedded, schedule_of, tiny_flux
from serving_loops import OMNI, Recorded, StandInMixin, StandInStage, installed, record, sglang, vllm_omni
from test_export import kernel
from test_export_table import matched

import adaptcache
from adaptcache.engines import vllm_omni as omni
from adaptcache.engines.serving import Request, RequestCall, Server, ServingConfig, load_schedules
from adaptcache.engines.sglang import Plugin
from adaptcache.errors import LoopError, ScheduleError
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Gear, Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

PLAN = [0, 1, 3, 6]


class Served:
    """A loop of an engine with a schedule: runs requests, counts the calls of the denoiser."""

    def __init__(self, engine: str, loop: Any) -> None:
        self.engine, self.loop, self.calls, self.lines = engine, loop, 0, list[str]()

    def start(self, path: Path, run: Recorded, **settings: Any) -> Served:
        config = ServingConfig(str(path), **settings)
        if self.engine == "sglang":
            self.plugin = Plugin(config, self.lines.append)
            self.plugin.hook(self.loop.hooks, self.loop.around)
            getattr(self.loop.hooks, "apply_hooks", lambda: None)()
        else:
            self.pipeline = self.loop.serve(run, self.called)
            self.own = omni.wrap(self.pipeline, config, self.lines.append)
        return self

    @property
    def server(self) -> Server:
        return next(iter(self.plugin.servers.values())) if self.engine == "sglang" else self.own

    def called(self) -> None:
        self.calls += 1

    def __call__(self, run: Recorded, quality: Any = None, **changes: Any) -> torch.Tensor:
        if self.engine == "sglang":
            return self.loop(run, quality, self.called, **changes)
        word = {"quality": changes.pop("word")} if "word" in changes else {}
        return self.pipeline.forward(self.loop.batch(quality, run, **changes, **word))


@pytest.fixture(params=["sglang", "sglang wheel", "vllm_omni", "vllm_omni wheel"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    engine, _, true = request.param.partition(" ")
    if true and not installed(engine):
        pytest.skip(f"the wheel of {engine} is not on the path: make contracts puts it there")
    with {"sglang": sglang, "vllm_omni": vllm_omni}[engine](bool(true)) as loop:
        yield Served(engine, loop)


def recorded(guidance: float = 1.0, steps: int = STEPS, seed: int = 0) -> tuple[Any, Recorded]:
    pipe = tiny_flux()
    return pipe, record(pipe, steps, guidance, seed, **arguments(guidance))


def arguments(guidance: float) -> dict[str, Any]:
    negative = {f"negative_{name}": value for name, value in embedded(1, seed=9)[0].items()}
    return {**embedded(1)[0], "height": 16, "width": 16} | (negative if guidance > 1 else {})


def attached(pipe: Any, schedule: Schedule, guidance: float = 1.0, steps: int = STEPS, seed: int = 0) -> Any:
    """The same run of the pipeline itself, by the schedule."""
    with adaptcache.attach(pipe, schedule) as handle:
        latents = pipe(
            **arguments(guidance), num_inference_steps=steps, true_cfg_scale=guidance, output_type="latent",
            generator=torch.Generator().manual_seed(seed), return_dict=False,
        )[0]  # fmt: skip
    return latents, handle.report()


def fitted(pipe: Any, plan: list[int] = PLAN, seed: int = 0, **changes: Any) -> Schedule:
    pipe.scheduler.set_timesteps(STEPS, sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    return schedule_of(pipe, plan, forecast=matched(seed, plan=plan)).model_copy(update=changes)


def decibels(latents: torch.Tensor, full: torch.Tensor) -> float:
    return float(10 * torch.log10(full.square().sum() / (latents - full).square().sum()))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_an_engine_makes_the_planned_calls_and_lands_where_attach_does(
    served: Served, guidance: float, tmp_path: Path
) -> None:
    pipe, run = recorded(guidance)
    schedule = fitted(pipe, made={"call": {"true_cfg_scale": guidance}})
    expected, report = attached(pipe, schedule, guidance)
    assert report.computed == PLAN
    served.start(schedule.save(tmp_path / "s.json"), run)
    latents = served(run)
    assert served.calls == len(PLAN) * len(run.branches)
    assert abs(decibels(latents, run.final) - decibels(expected, run.final)) < 0.1
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    metrics = served.server.metrics
    assert (metrics.requests, metrics.computed, metrics.skipped) == (1, 4, 4) and not metrics.refused
    assert "request r computed 4 of 8 steps (calibrated)" in served.lines[-2]


def test_an_instant_schedule_is_served_like_any_other(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded(steps=20)
    schedule = Schedule.instant([1 - i / 20 for i in range(20)], 2, sampler="euler")
    expected, _ = attached(pipe, schedule, steps=20)
    served.start(schedule.save(tmp_path / "instant.json"), run)
    torch.testing.assert_close(served(run), expected, atol=1e-5, rtol=1e-5)
    assert served.calls == 10 and "request r computed 10 of 20 steps (theory)" in served.lines[-2]


def test_without_a_schedule_for_the_model_all_is_computed_and_counted(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    other = fitted(pipe).denoiser.model_copy(update={"class_name": "WanTransformer3DModel"})
    served.start(fitted(pipe, denoiser=other).save(tmp_path / "s.json"), run)
    assert torch.equal(served(run), run.final)
    assert served.calls == STEPS
    assert served.server.metrics.refused == {"no schedule for FluxTransformer2DModel": 1}
    assert "those of" in served.lines[0] and "are for WanTransformer3DModel" in served.lines[0]


def test_a_folder_has_a_schedule_for_each_model_and_grid(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    other = fitted(pipe).denoiser.model_copy(update={"class_name": "WanTransformer3DModel"})
    fitted(pipe, [0], denoiser=other).save(tmp_path / "a.json")
    six = tuple(1 - i / 6 for i in range(6))
    rule = Rule(policy=Plan.of([0, 2], six), forecast=Extrapolate(order=0))
    fitted(pipe, grid=Grid(times=six), rules=(rule,)).save(tmp_path / "b.json")
    fitted(pipe).save(tmp_path / "c.json")
    served.start(tmp_path, run)
    served(run)
    assert served.calls == len(PLAN)
    _, short = recorded(steps=6)
    served(short)
    assert served.calls == len(PLAN) + 2


def test_another_step_count_is_planned_anew_as_by_attach(served: Served, tmp_path: Path) -> None:
    pipe, _ = recorded()
    _, run = recorded(steps=12)
    schedule = fitted(pipe, kernel=kernel(steps=STEPS))
    with pytest.warns(UserWarning, match="planned anew"):
        expected, report = attached(pipe, schedule, steps=12)
    served.start(schedule.save(tmp_path / "s.json"), run)
    with pytest.warns(UserWarning, match="planned anew"):
        latents = served(run)
    assert served.calls == len(report.computed) == 6
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    assert served.server.metrics.extrapolated == 1
    assert torch.equal(served(run), latents)  # planned once


def test_what_does_not_fit_runs_in_full_and_says_why(served: Served, tmp_path: Path) -> None:
    pipe, _ = recorded()
    _, run = recorded(steps=12)
    made = {"call": {"guidance_scale": 1.0}}
    served.start(fitted(pipe, made=made).save(tmp_path / "s.json"), run)  # no kernel: nothing to plan from
    assert torch.equal(served(run), run.final)
    [(reason, count)] = served.server.metrics.refused.items()
    assert "carries no kernel" in reason and count == 1
    _, strong = recorded(guidance=4.0)
    assert torch.equal(served(strong), strong.final)
    assert "by-hand was fitted with guidance_scale 1.0 and now 4.0" in served.server.metrics.refused


def test_a_strict_server_refuses_what_was_not_measured(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    _, longer = recorded(steps=12)
    served.start(fitted(pipe, kernel=kernel(steps=STEPS)).save(tmp_path / "s.json"), run, strict=True)
    served(run)
    assert served.calls == len(PLAN)
    assert torch.equal(served(longer), longer.final)
    assert "attach with strict=False" in str(served.server.metrics.refused)


def geared(pipe: Any) -> Schedule:
    """Three gears of 2, 4 and 6 calls, with weights of their own."""
    plans = [[0, 4], PLAN, [0, 1, 2, 4, 5, 6]]
    times = tuple(1 - i / STEPS for i in range(STEPS))
    gears = tuple(Gear(budget=len(p) / STEPS, compute=tuple(times[i] for i in p)) for p in plans)
    table = tuple(matched(seed, plan=plan).table[0] for seed, plan in enumerate(plans))
    forecast = matched().model_copy(update={"table": table})
    return fitted(pipe).model_copy(update={"rules": (Rule(policy=Plan(gears=gears), forecast=forecast),)})


def test_requests_choose_a_quality_or_a_gear(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    served.start(geared(pipe).save(tmp_path / "s.json"), run, quality="balanced")
    for quality, calls in (("fast", 2), ("balanced", 4), (2, 6), ("-1", 6), (None, 4), ("exact", 8)):
        before = served.calls
        latents = served(run, quality)
        assert served.calls - before == calls, quality
    assert torch.equal(latents, run.final)
    assert served.server.metrics.exact == 1 and not served.server.metrics.refused
    served(run, "superb")
    assert "no quality 'superb': fast, balanced, exact, or a gear from 0 to 2" in served.server.metrics.refused


def test_what_clients_ask_for_does_not_grow_the_log(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    served.start(geared(pipe).save(tmp_path / "s.json"), run)
    for quality in (float("inf"), "x\n" * 5000, *(f"q{k}" for k in range(20))):
        assert torch.equal(served(run, quality), run.final)
    counted = served.server.metrics.refused
    assert sum(counted.values()) == 22 and len(counted) == 17 and counted["other reasons"] == 6
    assert len(str(served.server.metrics)) < 3000 and "\n" not in str(served.server.metrics)


def test_the_engines_own_word_for_no_approximation_is_kept(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    served.start(fitted(pipe).save(tmp_path / "s.json"), run)
    word = "exact" if served.engine == "sglang" else "lossless"
    assert torch.equal(served(run, word=word), run.final)
    assert served.server.metrics.exact == 1


def test_an_aborted_request_leaves_nothing_to_the_next(served: Served, tmp_path: Path) -> None:
    pipe, run = recorded()
    schedule = fitted(pipe)
    served.start(schedule.save(tmp_path / "s.json"), run)
    latents = served(run)
    count = served.called

    def stop() -> None:
        count()
        if served.calls == 6:  # the second computed step of the second request
            raise KeyboardInterrupt

    served.called = stop  # type: ignore[method-assign]
    if served.engine == "vllm_omni":
        served.pipeline = served.loop.serve(run, stop)
        served.own = omni.wrap(served.pipeline, served.own.config, served.lines.append)
        served.calls = 4
    with pytest.raises(KeyboardInterrupt):
        served(run)
    assert served.server.metrics.aborted == 1
    assert torch.equal(served(run), latents)
    assert all(not runner.history.streams for idle in served.server.idle.values() for runner in idle)


def test_requests_in_turn_keep_separate_histories(served: Served, tmp_path: Path) -> None:
    """Two requests of different schedules and noise go step by step in two threads, and end as each alone."""
    pipe, first = recorded(seed=1)
    _, second = recorded(seed=2)
    schedule = geared(pipe)
    served.start(schedule.save(tmp_path / "s.json"), first)
    alone = [served(first, 0), served(second, 1)]
    turns, found = threading.Barrier(2, timeout=30), list[Any]([None, None])
    step = type(first.scheduler).step

    def in_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        turns.wait()
        return step(self, *args, **kwargs)

    def serve(number: int, run: Recorded) -> None:
        pipeline = served.loop.serve(run) if served.engine == "vllm_omni" else None
        if pipeline is None:
            found[number] = served(run, number)
            return
        omni.wrap(pipeline, served.own.config, served.lines.append)
        found[number] = pipeline.forward(served.loop.batch(number, run))

    threads = [threading.Thread(target=serve, args=pair) for pair in enumerate((first, second))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(first.scheduler), "step", in_turn)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])
    assert not torch.equal(alone[0], alone[1])


def test_other_caches_and_gates_of_sglang_go_first(tmp_path: Path) -> None:
    with sglang(False) as loop:
        served = Served("sglang", loop)
        pipe, run = recorded()
        served.start(fitted(pipe).save(tmp_path / "s.json"), run)
        assert torch.equal(served(run, cache_dit=True), run.final)
        assert torch.equal(served(run, cfg_gate_state={"active": True}), run.final)
        assert served.server.metrics.refused == {"cache-dit is on": 1, "cfg_gate_step is on": 1}


def server(tmp_path: Path, schedule: Schedule, **settings: Any) -> Server:
    path = schedule.save(tmp_path / "s.json")
    return Server(ServingConfig(str(path), **settings), schedule.denoiser.class_name, lambda line: None)


def test_a_loop_that_calls_its_denoiser_twice_a_step_is_computed(tmp_path: Path) -> None:
    pipe = tiny_flux()
    request = Request(server(tmp_path, fitted(pipe)))
    x = torch.ones(1, 2)
    request.start(tuple(1 - i / STEPS for i in range(STEPS)), RequestCall())
    for _ in range(STEPS):
        assert request.begin() and request.begin()
        assert torch.equal(request.end(x, x), x)
    request.close()
    assert request.server.metrics.refused == {"the loop calls its denoiser twice in a step": 1}


def test_a_loop_that_is_lost_at_a_skipped_step_fails_instead_of_going_on(tmp_path: Path) -> None:
    request = Request(server(tmp_path, fitted(tiny_flux(), [0])))
    x = torch.ones(1, 2)
    request.start(tuple(1 - i / STEPS for i in range(STEPS)), RequestCall())
    assert request.begin() and request.end(x, x) is not None
    assert not request.begin()
    with pytest.raises(LoopError, match="step 1 was skipped"):
        request.begin()


def test_latents_that_are_denoised_side_by_side_have_histories_each(tmp_path: Path) -> None:
    reuse = schedule_of(tiny_flux(), [0, 4], forecast=Extrapolate(order=0))
    request = Request(server(tmp_path, reuse))
    request.start(reuse.grid.times, RequestCall())
    for index in range(STEPS):
        x = (torch.full((1, 2), float(index)), torch.full((1, 3), -float(index)))
        known = request.end(x, x) if request.begin() else request.end(x, (x[0] * 0, x[1] * 0))
        source = 0.0 if index < 4 else 4.0
        assert known[0].tolist() == [[source] * 2] and known[1].tolist() == [[-source] * 3]
    request.start(reuse.grid.times, RequestCall())  # another loop of the same request
    assert request.begin() and request.index == 0
    request.close(failed=True)
    assert request.evidence == "extrapolated" and request.server.metrics.aborted == 1


def test_what_sees_the_run_needs_one_process(tmp_path: Path) -> None:
    from adaptcache.policies.drift import Drift

    watching = fitted(tiny_flux(), rules=(Rule(policy=Drift(threshold=0.1), forecast=Extrapolate(order=0)),))
    request = Request(server(tmp_path, watching), alone=False)
    request.start(tuple(1 - i / STEPS for i in range(STEPS)), RequestCall())
    assert "decides during the run, which several processes share" in request.reason


@pytest.mark.parametrize(
    ("made", "call", "says", "far"),
    [
        ({"guidance_scale": 3.5}, RequestCall(1.0, 3.5), [], False),
        ({"guidance_scale": 3.5}, RequestCall(1.0, 4.0), ["guidance_scale 3.5 and now 4.0"], False),
        ({"guidance_scale": 3.5}, RequestCall(4.0, 3.5), ["true_cfg_scale 1.0 and now 4.0"], True),
        ({"guidance_scale": 5.0}, RequestCall(6.0), ["guidance_scale 5.0 and now 6.0"], False),
        ({"guidance_scale": 5.0}, RequestCall(11.0), ["guidance_scale 5.0 and now 11.0"], True),
        ({"guidance_scale": 0.0}, RequestCall(1.0), [], False),
        ({"height": 512}, RequestCall(None, None, {"height": 768}), ["height 512 and now 768"], False),
        ({}, RequestCall(None, None, {"height": 768, "guidance_rescale": 0.0}), [], False),
        ({}, RequestCall(None, None, {"guidance_rescale": 0.7}), ["guidance_rescale 0.0 and now 0.7"], False),
        ({}, RequestCall(scheduler="Other"), ["FlowMatchEulerDiscreteScheduler and now Other"], False),
    ],
)
def test_calls_are_compared_with_the_calibration(made: Any, call: RequestCall, says: list[str], far: bool) -> None:
    schedule = schedule_of(tiny_flux(), PLAN).model_copy(update={"made": {"call": made}})
    assert call.differences(schedule) == (says, far)


def test_settings_name_a_schedule_before_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServingConfig.of({}) is None
    monkeypatch.setenv("ADAPTCACHE_SCHEDULE", "a.json")
    monkeypatch.setenv("ADAPTCACHE_QUALITY", "fast")
    monkeypatch.setenv("ADAPTCACHE_STRICT", "1")
    assert ServingConfig.of({}) == ServingConfig("a.json", "fast", True)
    assert ServingConfig.of({"schedule": "b.json", "strict": False}) == ServingConfig("b.json", "fast", False)
    assert ServingConfig.of({"quality": 0}) == ServingConfig("a.json", 0, True)  # the first gear
    assert ServingConfig.of({"quality": ""}) == ServingConfig("a.json", "fast", True)


def test_schedules_that_cannot_be_served_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="has no schedule: put files"):
        load_schedules(str(tmp_path))
    with pytest.raises(ScheduleError, match="has no schedule: put files"):  # and not at each request
        Plugin(ServingConfig(str(tmp_path)), print)
    blocks = Schedule.of("fbcache", threshold=0.1)
    with pytest.raises(ScheduleError, match="fbcache skips parts of the denoiser"):
        load_schedules(str(blocks.save(tmp_path / "b.json")))
    with pytest.raises(OSError, match="user/none is not on this machine"):
        load_schedules("user/none@main")


def test_both_plug_ins_are_found_by_their_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for group in ("sglang.multimodal_gen.plugins", "vllm_omni.general_plugins"):
        module, _, name = project["entry-points"][group]["adaptcache"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    monkeypatch.delenv("ADAPTCACHE_SCHEDULE", raising=False)
    importlib.import_module("adaptcache.engines.sglang").register()  # off, and needs no SGLang to say so


# What of the engines must stay as it is


def names(method: Any) -> list[str]:
    return list(inspect.signature(method).parameters)


@pytest.mark.skipif(not installed("sglang"), reason="the wheel of sglang is not on the path: make contracts")
def test_the_stage_of_sglang_has_the_signatures_that_are_wrapped() -> None:
    with sglang(True) as loop:
        assert names(loop.stage._predict_noise_with_cfg) == names(StandInStage._predict_noise_with_cfg)
        assert names(loop.stage.forward) == names(StandInStage.forward)
        assert names(loop.stage._cache_dit_requested_for_batch) == ["self", "batch"]
        assert names(loop.hooks.register) == ["target", "hook", "hook_type", "source"]


@pytest.mark.skipif(not installed("vllm_omni"), reason="the wheel of vllm_omni is not on the path: make contracts")
def test_the_classes_of_vllm_omni_have_the_signatures_that_are_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vllm_omni(True) as loop:
        for name in ("predict_noise_maybe_with_cfg", "scheduler_step_maybe_with_cfg"):
            assert names(getattr(loop.pipeline, name)) == names(getattr(StandInMixin, name))
        base = loop.modules[f"{OMNI}cache.base"].CacheBackend
        assert base.__abstractmethods__ == {"enable", "refresh"}
        selector = loop.modules[f"{OMNI}cache.selector"]
        assert names(selector.get_cache_backend) == ["cache_backend", "cache_config"]
        omni.register()
        omni.register()  # in a process that loads plug-ins again
        assert selector.get_cache_backend("none", {}) is None
        with pytest.raises(ValueError, match="Unsupported cache backend: other"):
            selector.get_cache_backend("other", {})
        with pytest.raises(ScheduleError, match="--cache-backend adaptcache without a schedule"):
            selector.get_cache_backend("adaptcache", {})
        pipe, run = recorded()
        path = fitted(pipe).save(tmp_path / "s.json")
        found = selector.get_cache_backend("adaptcache", json.loads(json.dumps({"schedule": str(path)})))
        assert isinstance(found, base) and not found.is_enabled()
        pipeline = loop.serve(run)
        found.enable(pipeline)
        found.refresh(pipeline, STEPS)
        assert found.is_enabled()
        pipeline.forward(loop.batch(None, run))
        assert found.server.metrics.skipped == 4
        with pytest.raises(ScheduleError, match="Linear has no predict_noise_maybe_with_cfg"):
            found.enable(torch.nn.Linear(1, 1))
