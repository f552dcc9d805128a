"""Exports: the plan for reuse is the best one, and each file says exactly that plan."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import yaml

from adaptcache.engines.formats import ENGINES, export
from adaptcache.engines.formats.mask import Reuse, moved, reuse_errors
from adaptcache.engines.formats.sglang import bins
from adaptcache.engines.formats.tensorrt_llm import constant
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
MASKED = sorted(set(ENGINES) - {"tensorrt-llm", "comfyui-teacache"})


def kernel(seed: int = 0, steps: int = N) -> Kernel:
    """The kernel of outputs that wander: each step adds a random vector of its own length."""
    random = np.random.default_rng(seed)
    outputs = np.cumsum(random.normal(size=(steps, 40)) * random.uniform(0.05, 0.6, size=(steps, 1)), axis=0)
    gram = outputs @ outputs.T
    times = tuple(1 - i / steps for i in range(steps))
    return Kernel(
        times=times, gram=tuple(map(tuple, gram.tolist())), sensitivity=tuple(random.uniform(0.1, 1, steps))
    )


def schedule(
    compute: list[int], carried: Kernel | None = None, matched: bool = True, steps: int = N
) -> Schedule:
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


def allowed(plan: tuple[int, ...], warm_up: int, longest: int, steps: int = N) -> bool:
    gaps = np.diff([*plan, steps]) - 1
    return set(range(warm_up)) <= set(plan) and max(gaps) <= longest


@pytest.mark.parametrize(
    ("calls", "warm_up", "longest"), [(3, 1, N), (4, 2, N), (4, 1, 2), (5, 3, 2), (N, 1, N)]
)
def test_the_plan_for_reuse_is_the_best_of_all(calls: int, warm_up: int, longest: int) -> None:
    carried = kernel(calls)
    mask = Reuse(schedule([0, 1, 2], carried), calls=calls).best(warm_up=warm_up, longest=longest)
    every = ((0, *rest) for rest in itertools.combinations(range(1, N), calls - 1))
    best = min(
        (plan for plan in every if allowed(plan, warm_up, longest)), key=lambda p: reuse_error(carried, p)
    )
    assert tuple(np.flatnonzero(mask.computed)) == best
    assert mask.calls == calls


def test_a_plan_made_for_reuse_is_kept_though_another_is_better() -> None:
    carried = kernel()
    own = [0, 1, 2, 3]
    mask = Reuse(schedule(own, carried, matched=False)).best()
    assert list(np.flatnonzero(mask.computed)) == own
    assert mask.lost == ()
    assert Reuse(schedule(own, carried)).best().computed != mask.computed


def test_without_a_kernel_the_plan_is_kept_and_the_loss_is_said() -> None:
    mask = Reuse(schedule([0, 3, 7])).best()
    assert list(np.flatnonzero(mask.computed)) == [0, 3, 7]
    assert mask.expected is None
    assert "no kernel" in mask.lost[0]
    with pytest.raises(ScheduleError, match="carries no kernel"):
        Reuse(schedule([0, 3, 7]), calls=5).best()


def test_a_budget_below_the_limits_of_an_engine_is_refused() -> None:
    with pytest.raises(ScheduleError, match=r"3 of 28 steps are too few .* at most 6 in a row"):
        export(schedule([0, 9, 18], kernel(steps=28), steps=28), "comfyui-magcache")


def test_a_policy_without_a_plan_is_simulated() -> None:
    rule = Rule(policy=Uniform(interval=3, warm_up=2), forecast=Extrapolate(order=0))
    uniform = schedule([0]).model_copy(update={"rules": (rule,)})
    assert Reuse(uniform).best().computed == (1, 1, 0, 0, 1, 0, 0, 1, 0)


def test_a_kernel_is_moved_to_another_number_of_steps() -> None:
    coarse, fine = schedule([0, 2, 5], kernel()), Reuse(schedule([0, 2, 5], kernel()), steps=18)
    mask = fine.best()
    assert mask.steps == 18 and mask.calls == 3
    assert "fitted on 9 steps, and is moved to 18" in mask.lost[-1]
    gap = reuse_errors(coarse.kernel, TIMES)
    np.testing.assert_allclose(
        fine.errors[::2, ::2], gap, rtol=1e-6, atol=1e-9
    )  # every other time is an old one
    assert export(coarse, "diffusers", steps=18).mask == mask


def test_a_moved_grid_is_that_of_the_same_scheduler() -> None:
    for shift in (1.0, 3.0):
        grids = {n: [shift * s / (1 + (shift - 1) * s) for s in 1 - np.arange(n) / n] for n in (14, 20, 28)}
        np.testing.assert_allclose(moved(tuple(grids[28]), 14), grids[14], atol=1e-12)
        np.testing.assert_allclose(moved(tuple(grids[28]), 20), grids[20], atol=5e-3)


def test_a_uniform_policy_moves_without_a_kernel() -> None:
    rule = Rule(policy=Uniform(interval=3), forecast=Extrapolate(order=0))
    uniform = schedule([0]).model_copy(update={"rules": (rule,)})
    assert Reuse(uniform, steps=6).best().computed == (1, 0, 0, 1, 0, 0)


# Files


def mask_in(engine: str, text: str) -> list[int]:
    """Reads the mask back from a file, the way its engine understands it."""
    if engine == "sd.cpp":
        return [int(step) for step in text.split('--scm-mask "')[1].split('"')[0].split(",")]
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


@pytest.mark.parametrize("engine", MASKED)
@pytest.mark.parametrize("compute", [[0, 1, 4, 6], [0, 5], [0, 2, 4, 8], list(range(N))])
def test_every_file_holds_the_mask(engine: str, compute: list[int]) -> None:
    exported = export(schedule(compute, matched=False), engine)
    assert mask_in(engine, exported.text) == list(exported.mask.computed)
    assert list(np.flatnonzero(exported.mask.computed)) == compute


@pytest.mark.parametrize("engine", ENGINES)
def test_every_export_says_what_it_loses_and_how_it_is_used(engine: str, tmp_path) -> None:
    exported = export(schedule([0, 1, 4, 6], kernel()), engine)
    path = exported.save(tmp_path / f"x{exported.ending}")
    assert path.read_text() == exported.text
    said = exported.explained("mine.file")
    assert any("reuse" in what for what in exported.lost)
    assert exported.expects and exported.engine == engine
    assert exported.mask.strip in said and "{path}" not in said
    assert "mine.file" in said or engine == "sd.cpp"  # its flags are the file


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
    assert tuple(made) == exported.mask.computed


def test_a_constant_crosses_the_threshold_exactly_at_the_interval() -> None:
    for interval in range(1, 60):
        step = constant(interval)[-1]
        assert (interval - 1) * step < 0.2 * 0.999 and interval * step > 0.2 * 1.001


def test_runs_of_steps_are_split_into_bins() -> None:
    assert bins((1, 1, 0, 1, 0, 0, 1)) == ([2, 1, 1], [1, 2])


def test_an_unknown_engine_gets_the_list() -> None:
    with pytest.raises(LookupError, match=r"no engine 'comfy'; there are diffusers, cache-dit"):
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
    mask = Reuse(schedule(plan, carried, matched=False)).best()
    assert mask.expected == pytest.approx(-10 * math.log10(exact))
