"""Exports: the plan for reuse is the best one, and each file says exactly that plan."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import yaml

from adaptcache.engines.formats import FORMATS, export
from adaptcache.engines.formats.cache_dit import split_runs
from adaptcache.engines.formats.mask import ReusePlanner, move_times, price_reuse
from adaptcache.engines.formats.teacache import constant
from adaptcache.errors import ScheduleError
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.forecasts.matched import Matched
from adaptcache.policies.plan import Plan
from adaptcache.policies.uniform import Uniform
from adaptcache.schedule.format import Denoiser, Grid, Kernel
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule

N = 9
TIMES = tuple(1 - i / N for i in range(N))
ENGINES = [name for name, form in FORMATS.items() if form.write]
MASKED = sorted(set(ENGINES) - {"table", "tensorrt-llm", "comfyui-teacache"})


def kernel(seed: int = 0, steps: int = N) -> Kernel:
    """The kernel of outputs that wander: each step adds a random vector of its own length."""
    random = np.random.default_rng(seed)
    outputs = np.cumsum(random.normal(size=(steps, 40)) * random.uniform(0.05, 0.6, size=(steps, 1)), axis=0)
    gram = outputs @ outputs.T
    times = tuple(1 - i / steps for i in range(steps))
    return Kernel(times=times, gram=tuple(map(tuple, gram.tolist())), sensitivity=tuple(random.uniform(0.1, 1, steps)))


def schedule(compute: list[int], carried: Kernel | None = None, matched: bool = True, steps: int = N) -> Schedule:
    times = tuple(1 - i / steps for i in range(steps))
    row = tuple(() if i in compute else (1.0, 0.0, 0.0) for i in range(steps))
    forecast = Matched(history=1, table=((row,),)) if matched else Extrapolate(order=0)
    return Schedule(
        name="test",
        denoiser=Denoiser(class_name="FluxTransformer2DModel"),
        grid=Grid(scheduler="FlowMatchEulerDiscreteScheduler", times=times),
        rules=(Rule(policy=Plan.of(compute, times), forecast=forecast),),
        kernel=carried,
    )


def reuse_error(kernel: Kernel, plan: tuple[int, ...]) -> float:
    """The sum over skipped steps of |u_i - u_c|^2 times the sensitivity, step by step."""
    gram, total = np.array(kernel.gram), 0.0
    for i in range(len(gram)):
        c = max(step for step in plan if step <= i)
        total += kernel.sensitivity[i] * (gram[i, i] - 2 * gram[i, c] + gram[c, c])
    return total


def allowed(plan: tuple[int, ...], warm_up: int, longest: int, forced: tuple[int, ...] = (), steps: int = N) -> bool:
    """Counts skips from one computed step to the next; at forced ones an engine goes on counting."""
    counter, most = 0, 0
    for step in range(steps):
        if step in plan:
            counter = counter if step in forced else 0
        else:
            counter += 1
            most = max(most, counter)
    return {*range(warm_up), *forced} <= set(plan) and most <= longest


@pytest.mark.parametrize(
    ("calls", "warm_up", "longest", "forced"),
    [
        (3, 1, N, ()), (4, 2, N, ()), (4, 1, 2, ()), (5, 3, 2, ()), (N, 1, N, ()),
        (3, 1, N, (5,)), (4, 2, 4, (5,)), (5, 1, 2, (3,)), (4, 1, 5, (7,)), (5, 2, 2, (4,)),
    ],
)  # fmt: skip
def test_the_plan_for_reuse_is_the_best_of_all(
    calls: int, warm_up: int, longest: int, forced: tuple[int, ...]
) -> None:
    carried = kernel(calls)
    planner = ReusePlanner(schedule([0, 1, 2], carried), calls=calls)
    mask = planner.best(warm_up=warm_up, longest=longest, forced=forced)
    every = ((0, *rest) for rest in itertools.combinations(range(1, N), calls - 1))
    within = [plan for plan in every if allowed(plan, warm_up, longest, forced)]
    best = min(within, key=lambda plan: reuse_error(carried, plan))
    assert tuple(np.flatnonzero(mask.computed)) == best
    assert mask.calls == calls


def test_a_plan_made_for_reuse_is_kept_though_another_is_better() -> None:
    carried = kernel()
    own = [0, 1, 2, 3]
    mask = ReusePlanner(schedule(own, carried, matched=False)).best()
    assert list(np.flatnonzero(mask.computed)) == own
    assert mask.lost == ()
    assert ReusePlanner(schedule(own, carried)).best().computed != mask.computed


def test_without_a_kernel_the_plan_is_kept_and_the_loss_is_said() -> None:
    mask = ReusePlanner(schedule([0, 3, 7])).best()
    assert list(np.flatnonzero(mask.computed)) == [0, 3, 7]
    assert mask.expected is None
    assert "no kernel" in mask.lost[0]
    with pytest.raises(ScheduleError, match="carries no kernel"):
        ReusePlanner(schedule([0, 3, 7]), calls=5).best()


def test_a_budget_below_the_limits_of_an_engine_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"3 of 28 steps are too few .* at most 6 in a row"):
        export(schedule([0, 9, 18], kernel(steps=28), steps=28), "comfyui-magcache")


def test_a_policy_without_a_plan_is_simulated() -> None:
    rule = Rule(policy=Uniform(interval=3, warm_up=2), forecast=Extrapolate(order=0))
    uniform = schedule([0]).model_copy(update={"rules": (rule,)})
    assert ReusePlanner(uniform).best().computed == (1, 1, 0, 0, 1, 0, 0, 1, 0)


def test_a_kernel_is_moved_to_another_number_of_steps() -> None:
    coarse, fine = schedule([0, 2, 5], kernel()), ReusePlanner(schedule([0, 2, 5], kernel()), steps=18)
    plan = fine.best()
    assert plan.steps == 18 and plan.calls == 3
    assert "fitted on 9 steps, and is moved to 18" in plan.lost[-1]
    gap = price_reuse(coarse.kernel, TIMES)
    every_other = price_reuse(coarse.kernel, fine.times)[::2, ::2]  # these times are old ones
    np.testing.assert_allclose(every_other, gap, rtol=1e-6, atol=1e-9)
    assert export(coarse, "diffusers", steps=18).plan == plan


def test_a_moved_grid_is_that_of_the_same_scheduler() -> None:
    for shift in (1.0, 3.0):
        grids = {n: [shift * s / (1 + (shift - 1) * s) for s in 1 - np.arange(n) / n] for n in (14, 20, 28)}
        np.testing.assert_allclose(move_times(tuple(grids[28]), 14), grids[14], atol=1e-12)
        np.testing.assert_allclose(move_times(tuple(grids[28]), 20), grids[20], atol=5e-3)


def test_a_uniform_policy_moves_without_a_kernel() -> None:
    rule = Rule(policy=Uniform(interval=3), forecast=Extrapolate(order=0))
    uniform = schedule([0]).model_copy(update={"rules": (rule,)})
    assert ReusePlanner(uniform, steps=6).best().computed == (1, 0, 0, 1, 0, 0)


# Files


def mask_in(engine: str, text: str) -> list[int]:
    """Reads the mask back from a file, the way its engine understands it."""
    if engine == "comfyui-magcache":
        plain, both = (eval(line.split("np.array(")[1].split(")")[0]) for line in text.splitlines())
        assert plain == both[::2] == both[1::2]
        return [int(ratio) - 1 for ratio in plain]
    data = yaml.safe_load(text)
    if engine == "sglang":
        runs = itertools.zip_longest(data["scm_compute_bins"], data["scm_cache_bins"], fillvalue=0)
        return [step for compute, cache in runs for step in [1] * compute + [0] * cache]
    if engine in ("cache-dit", "xdit"):
        data = data.get("cache_config", data)
        assert data["steps_computation_policy"] == "static" and data["max_warmup_steps"] == 0
        return list(data["steps_computation_mask"])
    names = {"diffusers": "mag_ratios", "vllm-omni": "mag_ratios", "lightx2v": "magcache_ratios"}
    ratios = data[names[engine]]
    return [int(ratio) - 1 for ratio in (ratios[0] if engine == "lightx2v" else ratios)]


def suited(engine: str, schedule: Schedule) -> Schedule:
    """The schedule as that of a model that the engine follows plans for."""
    models = FORMATS[engine].models or (schedule.denoiser.class_name,)
    return schedule.model_copy(update={"denoiser": Denoiser(class_name=models[0])})


@pytest.mark.parametrize("engine", MASKED)
@pytest.mark.parametrize("compute", [[0, 1, 4, 6], [0, 5], [0, 2, 4, 8], list(range(N))])
def test_every_file_holds_the_mask(engine: str, compute: list[int]) -> None:
    exported = export(suited(engine, schedule(compute, matched=False)), engine)
    assert mask_in(engine, exported.text) == list(exported.plan.computed)
    assert list(np.flatnonzero(exported.plan.computed)) == compute


@pytest.mark.parametrize("engine", ENGINES)
def test_every_export_says_what_it_loses_and_how_it_is_used(engine: str, tmp_path) -> None:
    exported = export(suited(engine, schedule([0, 1, 4, 6], kernel())), engine)
    path = exported.save(tmp_path / f"x{exported.ending}")
    assert path.read_text() == exported.text
    said = exported.explained("mine.file")
    assert any("reuse" in what for what in exported.lost) or engine == "table"
    assert exported.expects and exported.engine == engine
    assert exported.plan.strip in said and "mine.file" in said and "{path}" not in said
    assert f"against {engine} {FORMATS[engine].version}" in said


@pytest.mark.parametrize(("steps", "calls"), [(28, 10), (28, 28), (50, 7), (9, 1), (20, 11)])
@pytest.mark.parametrize("engine", ["tensorrt-llm", "comfyui-teacache"])
def test_a_constant_polynomial_computes_what_is_promised(engine: str, steps: int, calls: int) -> None:
    exported = export(schedule(list(range(calls)), matched=False, steps=steps), engine)
    if engine == "tensorrt-llm":
        config = yaml.safe_load(exported.text)["cache_config"]
        threshold, coefficients, last = config["teacache_thresh"], config["coefficients"], True
    else:
        threshold, coefficients, last = 0.4, json.loads(exported.text.split(": ")[1].rstrip(",\n")), False
    assert len(coefficients) == 5
    made, distance = [1], 0.0
    for _ in range(1, steps):  # TeaCache's rule, whatever the input's change
        distance += float(np.poly1d(coefficients)(np.random.default_rng(0).uniform()))
        made.append(int(distance >= threshold))
        distance *= 1 - made[-1]
    made[-1] = made[-1] or int(last)
    assert tuple(made) == exported.plan.computed


def test_tensorrt_llm_is_refused_for_what_its_teacache_does_not_know() -> None:
    plain = schedule([0, 2])
    other = plain.model_copy(update={"denoiser": Denoiser(class_name="SanaTransformer2DModel")})
    with pytest.raises(ScheduleError, match=r"follows a plan for FluxTransformer2DModel, .*; test is for Sana"):
        export(other, "tensorrt-llm")
    two = {name: {"class": "FluxTransformer2DModel"} for name in ("transformer", "transformer_2")}
    with pytest.raises(ScheduleError, match="test was fitted to several denoisers"):
        export(plain.model_copy(update={"made": {"components": two}}), "tensorrt-llm")


def test_a_constant_crosses_the_threshold_exactly_at_the_interval() -> None:
    for interval in range(1, 60):
        step = constant(interval, 0.2)[-1]
        assert (interval - 1) * step < 0.2 * 0.999 and interval * step > 0.2 * 1.001


def test_runs_of_steps_are_split_into_bins() -> None:
    assert split_runs((1, 1, 0, 1, 0, 0, 1)) == ([2, 1, 1], [1, 2])


def test_an_unknown_engine_gets_the_list() -> None:
    with pytest.raises(LookupError, match=r"no format 'comfy'; there are diffusers, cache-dit"):
        export(schedule([0]), "comfy")


def test_the_predicted_error_is_that_of_the_outputs_themselves() -> None:
    random = np.random.default_rng(3)
    outputs, lengths = random.normal(size=(N, 40)), random.uniform(0.1, 1, N)
    carried = kernel().model_copy(
        update={"gram": tuple(map(tuple, (outputs @ outputs.T).tolist())), "sensitivity": tuple(lengths**2)}
    )
    plan = [0, 2, 5]
    used = [max(step for step in plan if step <= i) for i in range(N)]
    full, reused = lengths @ outputs, lengths @ outputs[used]  # Euler steps along outputs that do not react
    exact = float(((full - reused) ** 2).sum())
    mask = ReusePlanner(schedule(plan, carried, matched=False)).best()
    assert mask.expected == pytest.approx(-10 * math.log10(exact))


# What an engine would not follow is not written


def test_nothing_is_written_for_an_engine_that_ignores_it() -> None:
    with pytest.raises(ScheduleError, match=r"nothing is exported to sd.cpp of 2026-08 .*: it parses --scm-mask"):
        export(schedule([0, 3, 7]), "sd.cpp")
    with pytest.raises(ScheduleError, match="nothing is exported to smoothcache"):
        export(schedule([0, 3, 7]), "smoothcache")


@pytest.mark.parametrize(
    ("engine", "model"), [("lightx2v", "FluxTransformer2DModel"), ("vllm-omni", "WanTransformer3DModel")]
)
def test_models_that_an_engine_has_no_cache_for_are_refused(engine: str, model: str) -> None:
    fitted = schedule([0, 3, 7], matched=False)
    with pytest.raises(ScheduleError, match=f"{engine} .* follows a plan for .* only; test is for {model}"):
        export(fitted.model_copy(update={"denoiser": Denoiser(class_name=model)}), engine)
    assert export(fitted.model_copy(update={"denoiser": Denoiser()}), engine).plan.calls == 3


def test_a_plan_for_each_block_is_not_written_as_one_that_computes_all() -> None:
    fitted = schedule([0, 3, 7], matched=False)
    each = fitted.rules[0].model_copy(update={"site": "blocks", "each": True})
    with pytest.raises(ScheduleError, match=r"skips parts of the denoiser \(blocks\)"):
        export(fitted.model_copy(update={"rules": (each,)}), "diffusers")


@pytest.mark.parametrize("call", [{"true_cfg_scale": 4.0}, {"negative_prompt": "blurred"}])
def test_a_mask_that_goes_on_at_each_branch_is_not_written_for_two(call: dict[str, object]) -> None:
    guided = schedule([0, 3, 7], matched=False).model_copy(update={"made": {"call": call}})
    with pytest.raises(ScheduleError, match="one state for both branches"):
        export(guided, "vllm-omni")
    plain = guided.model_copy(update={"made": {"call": {"true_cfg_scale": 1, "guidance_scale": 3.5}}})
    assert export(plain, "vllm-omni").plan.calls == 3


def played(ratios: list[float], flux: bool) -> list[int]:
    """The rule of ComfyUI-MagCache on its table, as its code says: at step 11 of Flux nothing is counted."""
    made, product, error, count = [], 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        skip = False
        if step >= int(0.1 * len(ratios)) and not (flux and step == 11):
            product, count = product * ratio, count + 1
            error += abs(1 - product)
            skip = (error < 0.3 if flux else error <= 0.3) and count <= 6
            if not skip:
                product, error, count = 1.0, 0.0, 0
        made.append(int(not skip))
    return made


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("calls", [6, 7, 8, 10, 14, 20])
def test_the_comfyui_node_computes_what_is_promised(seed: int, calls: int) -> None:
    carried = schedule([0, 1, 2], kernel(seed, steps=28), steps=28)
    try:
        exported = export(carried, "comfyui-magcache", calls=calls)
    except ScheduleError as error:
        assert calls <= 6 and "too few" in str(error)
        return
    lines = [eval(line.split("np.array(")[1].split(")")[0]) for line in exported.text.splitlines()]
    assert played(lines[0], flux=True) == played(lines[1][::2], flux=False) == list(exported.plan.computed)
    assert exported.plan.computed[11] and exported.plan.calls == calls


def test_a_plan_without_step_11_is_moved_on_flux_and_kept_elsewhere() -> None:
    own = [0, 1, 4, 8, 12, 16, 20, 24]
    flux = schedule(own, kernel(steps=28), matched=False, steps=28)
    assert export(flux, "comfyui-magcache").plan.computed[11]
    video = flux.model_copy(update={"denoiser": Denoiser(class_name="WanTransformer3DModel")})
    assert list(np.flatnonzero(export(video, "comfyui-magcache").plan.computed)) == own
    with pytest.raises(ScheduleError, match="carries no kernel"):
        export(schedule(own, matched=False, steps=28), "comfyui-magcache")
