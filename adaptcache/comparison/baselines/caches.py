"""The caches of diffusers, for denoisers with `enable_cache`, and of cache-dit, each with the settings that it has."""

import ast
import contextlib
import inspect
import io
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import diffusers
import numpy as np

from ...engines.diffusers.components import is_modular
from ...engines.formats.cache_dit import left_as_found
from ...hooks import StepHook
from ...policies.magnitude import Magnitude
from ...policies.uniform import Uniform
from .base import Baseline, Case, Params, Ready, even_steps, nearest_plans, planned_steps, product_of

SKIP, BETWEEN = "spatial_attention_block_skip_range", "spatial_attention_timestep_skip_range"
SKIPS = (2, 4, 8, 64)  # attention is computed at every so many steps
RANGES = ((100, 800), (-1, 950), (-1, 1001))  # of timesteps
SEA_THRESHOLDS = (0.05, 0.15, 0.4, 1.0, 3.0)


class DiffusersCache(Baseline):
    """A cache of diffusers."""

    config: ClassVar[str]  # the class of its configuration

    def find_obstacle(self, case: Case) -> str | None:
        if not hasattr(case.denoisers[0], "enable_cache"):
            return "this denoiser has no enable_cache"
        kind = type(case.pipe)
        # Classic pipelines clear what these caches keep after each call, and say which branch they call.
        if is_modular(case.pipe) and "_reset_stateful_cache" not in inspect.getsource(sys.modules[kind.__module__]):
            return (
                f"{kind.__name__} does not clear what it keeps between calls; the classic pipeline of the family does"
            )
        return None

    def build_config(self, case: Case, params: Params) -> Any:
        """Returns the configuration that `enable_cache` takes."""
        return getattr(diffusers, self.config)(**params)

    @contextlib.contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        with enable_cache(case, self.build_config(case, params)):
            yield Ready(case.setup.call)


@contextlib.contextmanager
def enable_cache(case: Case, config: Any) -> Iterator[None]:
    """Enables a cache of diffusers on all denoisers."""
    with contextlib.ExitStack() as undo:
        for denoiser in case.denoisers:
            denoiser.enable_cache(config)  # type: ignore[operator]
            undo.callback(denoiser.disable_cache)  # type: ignore[arg-type]
        yield


class FirstBlock(DiffusersCache):
    """First-block cache, after ParaAttention (2024), https://github.com/chengzeyi/ParaAttention"""

    name = "FirstBlockCache"
    about = "diffusers; decides for each prompt"
    config = "FirstBlockCacheConfig"
    per_prompt = probes = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)}


class Pyramid(DiffusersCache):
    """Reuses what attentions returned; Zhao et al., 2024, https://arxiv.org/abs/2408.12588"""

    name = "PAB"
    about = "diffusers, attention outputs"
    config = "PyramidAttentionBroadcastConfig"
    settings: ClassVar = {SKIP: SKIPS, BETWEEN: RANGES}

    def find_obstacle(self, case: Case) -> str | None:
        if obstacle := super().find_obstacle(case):
            return obstacle
        if not hasattr(case.pipe, "current_timestep"):
            return f"{type(case.pipe).__name__} has no current_timestep"
        if case.branches > 1:
            return f"keeps one state for all of the {case.branches} denoiser calls that guidance makes a step"
        return None

    def build_config(self, case: Case, params: Params) -> Any:
        cross = {name.replace("spatial", "cross"): value for name, value in params.items()}
        now = {"current_timestep_callback": lambda: case.pipe.current_timestep}
        return super().build_config(case, {**params, **cross, **now})


class FasterCache(Pyramid):
    """Extrapolates what attentions returned; with guidance in one batch, also its unconditional half.

    Lv et al., 2024, https://arxiv.org/abs/2410.19355
    """

    name = "FasterCache"
    config = "FasterCacheConfig"
    settings: ClassVar = {SKIP: SKIPS, BETWEEN: RANGES[:2], "weight": (0.0, 0.5)}

    def build_config(self, case: Case, params: Params) -> Any:
        own = dict(params)
        weight = own.pop("weight")
        # It warns of being experimental each time.
        logging.getLogger("diffusers.hooks.faster_cache").setLevel(logging.ERROR)
        return diffusers.FasterCacheConfig(
            **own, is_guidance_distilled=True, attention_weight_callback=lambda _: weight,
            current_timestep_callback=lambda: case.pipe.current_timestep,
        )  # fmt: skip


class Sea(DiffusersCache):
    """Spectral-evolution-aware cache, https://arxiv.org/abs/2602.18993"""

    name = "SeaCache"
    about = "diffusers; decides for each prompt"
    config = "SeaCacheConfig"
    per_prompt = True
    threshold = "threshold"
    settings: ClassVar = {"threshold": SEA_THRESHOLDS, "residual_order": (0, 1), "max_consecutive_cached": (0,)}

    def find_obstacle(self, case: Case) -> str | None:
        kind, version = type(case.pipe), f"diffusers {diffusers.__version__}"
        if not hasattr(diffusers, self.config):
            return f"{version} has none: pip install -U diffusers"
        # Pipelines that do not give the denoiser step and sigma are run in full, whatever is set.
        if "sigma" not in inspect.getsource(kind.__call__).partition("cache_context")[2]:
            return (
                f"not for {kind.__name__}, which does not give its denoiser step and sigma; in {version} "
                "Wan (text to video) and Cosmos 3 do"
            )
        return super().find_obstacle(case)


class MagCache(DiffusersCache):
    """Skips all blocks while the product of magnitude ratios stays near 1; by its own calibration.

    Ma et al., 2025, https://arxiv.org/abs/2506.09045
    """

    name = "MagCache"
    about = "diffusers, calibrated"
    config = "MagCacheConfig"

    def propose(self, case: Case) -> list[Params]:
        """Follows its rule for the whole grid without a run: plans nearest below each budget."""
        fixed = {"num_inference_steps": case.steps, "mag_ratios": calibrate_ratios(case)}
        settings = product_of(
            threshold=(0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0),
            max_skip_steps=(1, 2, 3, 4, 6, 8), retention_ratio=(0.0, 0.1, 0.2),
        )  # fmt: skip
        plans: dict[tuple[int, ...], Params] = {}
        for setting in settings:
            params = {**setting, **fixed}
            plans.setdefault(planned_steps(magcache_policy(params), case.steps), params)
        return nearest_plans(plans, case.calls, 3)


def magcache_policy(params: Params) -> Magnitude:
    """Returns the policy that decides as diffusers' MagCache does with these parameters."""
    return Magnitude(
        ratios=tuple(params["mag_ratios"]), threshold=params["threshold"], max_skip=params["max_skip_steps"],
        retention=params["retention_ratio"],
    )  # fmt: skip


def calibrate_ratios(case: Case) -> list[float]:
    """Returns the mean magnitude ratios over the calibration prompts, with shape (N,)."""
    printed = io.StringIO()  # it prints the ratios for people to copy, and then forgets them
    config = diffusers.MagCacheConfig(calibrate=True, num_inference_steps=case.steps)
    with enable_cache(case, config), contextlib.redirect_stdout(printed):
        for prompt in case.prompts.batches(1):
            replace(case.setup, batch_size=1).run(StepHook(), prompt)
    rows = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line[:2] in ("[0", "[1")]
    return [float(value) for value in np.mean(rows, axis=0)]


class TaylorSeer(DiffusersCache):
    """Forecasts the output of every attention; the feed-forward networks run at every step.

    Liu et al., 2025, https://arxiv.org/abs/2503.06923
    """

    name = "TaylorSeer"
    about = "diffusers, attention outputs"
    config = "TaylorSeerCacheConfig"
    lite: ClassVar[bool] = False

    def propose(self, case: Case) -> list[Params]:
        """Proposes two plans for each budget and number of full steps at the end, each with all orders."""
        chosen: dict[tuple[int, ...], Params] = {}
        for last in (0, 1, 2, 3, 5):
            plans: dict[tuple[int, ...], Params] = {}
            for interval, before in itertools.product(range(2, 11), range(1, 6)):
                params: Params = {"cache_interval": interval, "disable_cache_before_step": before}
                if last:
                    params = {**params, "disable_cache_after_step": case.steps - last}
                plans.setdefault(planned_steps(taylorseer_policy(params, case.steps), case.steps), params)
            for params in nearest_plans(plans, case.calls, 2):
                chosen.setdefault(planned_steps(taylorseer_policy(params, case.steps), case.steps), params)
        return [{**params, "max_order": order} for params in chosen.values() for order in (1, 2, 3)]

    def build_config(self, case: Case, params: Params) -> Any:
        dtype = next(case.denoisers[0].parameters()).dtype  # its default rounds to bfloat16
        own = {"use_lite_mode": self.lite, "taylor_factors_dtype": dtype}
        return super().build_config(case, {**params, **own})


class TaylorSeerLite(TaylorSeer):
    """Forecasts the output of the last projection and skips all blocks."""

    name = "TaylorSeer lite"
    about = "diffusers, the output of the denoiser"
    lite = True


def taylorseer_policy(params: Params, steps: int) -> Uniform:
    """Returns the policy that computes the steps that diffusers' TaylorSeer does."""
    after = params.get("disable_cache_after_step", steps)
    return Uniform(
        interval=params["cache_interval"], warm_up=params["disable_cache_before_step"], first_gap=2,
        cool_down=steps - after,
    )  # fmt: skip


# cache-dit: DBCache, with its forecasts (TaylorSeer, FoCa, DMD), and by a fixed mask of steps

DB_THRESHOLDS = (0.03, 0.08, 0.2, 0.5, 1.2)
WARMUPS = (1, 3)


@dataclass(frozen=True)
class DBCache(Baseline):
    """Dual-block cache, https://github.com/vipshop/cache-dit

    Arguments:
        name: What tells it apart.
        forecast: What cache-dit calls a calibrator; empty reuses. "dmd" forecasts after four evenly spaced computed
            steps, before by Taylor.
    """

    name: str = "DBCache"  # type: ignore[misc]
    forecast: str = ""

    about = "cache-dit; decides for each prompt"
    package = "cache-dit"
    per_prompt = probes = True
    threshold = "residual_diff_threshold"

    def propose(self, case: Case) -> list[Params]:
        forecasts = {"taylorseer_order": (1,)} if self.forecast == "taylorseer" else {}
        return product_of(residual_diff_threshold=DB_THRESHOLDS, max_warmup_steps=WARMUPS, **forecasts)

    @contextlib.contextmanager
    def apply(self, case: Case, params: Params) -> Iterator[Ready]:
        import cache_dit

        for name in list(logging.root.manager.loggerDict):
            if name.lower().startswith("cache_dit"):
                logging.getLogger(name).setLevel(logging.ERROR)  # it logs every block it hooks
        own = dict(params)
        order = own.pop("taylorseer_order", 0)
        calibrator = build_forecast("taylorseer" if order else self.forecast, order)
        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=case.steps,
            enable_separate_cfg=case.branches > 1, **own,
        )  # fmt: skip
        with contextlib.ExitStack() as undo:
            for denoiser in case.denoisers:
                undo.enter_context(left_as_found(denoiser))
            cache_dit.enable_cache(case.pipe, cache_config=config, calibrator_config=calibrator)
            undo.callback(cache_dit.disable_cache, case.pipe)
            yield Ready(case.setup.call)


def build_forecast(name: str, order: int) -> Any:
    """Returns the configuration of one of cache-dit's forecasts; None reuses."""
    import cache_dit

    match name:
        case "taylorseer":
            return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order)
        case "foca":
            return cache_dit.FoCaCalibratorConfig()
        case "dmd":
            return cache_dit.DMDCalibratorConfig()
    return None


@dataclass(frozen=True)
class StaticMask(DBCache):
    """DBCache by a mask: evenly spaced steps, and the steps our plan computes."""

    name: str = "static mask"  # type: ignore[misc]

    about = "cache-dit, fixed steps"
    per_prompt = False
    threshold = ""

    def propose(self, case: Case) -> list[Params]:
        fewer = sorted({max(1, calls - less) for calls in case.calls for less in (0, 1, 2, 3)})
        plans = [even_steps(case.steps, calls) for calls in fewer] + list(map(list, case.plans.values()))
        masks = [[int(i in plan) for i in range(case.steps)] for plan in plans]
        return [
            {"steps_computation_mask": mask, "steps_computation_policy": "static", "max_warmup_steps": 0}
            | ({"taylorseer_order": order} if order else {})
            for mask, order in itertools.product(masks, (0, 1))
        ]


DBCACHES = (
    DBCache(),
    DBCache("DBCache + TaylorSeer", "taylorseer"),
    DBCache("DBCache + FoCa", "foca"),  # https://arxiv.org/abs/2508.16211
    DBCache("DBCache + DMD", "dmd"),
    StaticMask(),
)
