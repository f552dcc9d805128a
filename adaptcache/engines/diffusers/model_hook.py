"""A schedule on a denoiser alone, where there is no pipeline object: a hook of diffusers, a state a cache context.

The hook sees the outputs of branches and not the guided one. A weighted sum of guided outputs is that of the branches,
as long as guidance is linear and its weights sum to one: `uncond + scale * (cond - uncond)` is, rescaled, normalised
and projected guidance is not. Latents have to enter the denoiser as the scheduler holds them, and its output has to
reach the scheduler with its sign. Pipelines of which this was tested are in `EXACT`.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any, Self

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from ...errors import AttachError, LoopError, ScheduleError
from ...forecasts.base import Forecast, History
from ...schedule.findings import ONE_OUTPUT
from ...sites.outputs import join_tensors, split_tensors
from ...step import Step, entering
from .attach import as_schedule
from .components import plain_module
from .gate import number_of, time_argument

NAME = "adaptcache"
EXACT = {  # tests/test_model_hook.py compares them with `attach`
    "FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxControlNetPipeline", "FluxKontextPipeline",
    "Flux2Pipeline", "StableDiffusion3Pipeline", "SanaPipeline", "CogView4Pipeline", "WanPipeline",
    "HunyuanVideoPipeline", "CogVideoXPipeline", "LTXPipeline",
}  # fmt: skip
NOT_LINEAR = ("guidance_rescale", "cfg_normalization", "cfg_normalize", "cfg_renorm_min", "perturbed_guidance_scale")
ROUNDED = 2.0**-8  # relative: times are given in bfloat16


@dataclass
class BranchState:
    """What is kept of one branch: its outputs, their steps, the last step and its time."""

    history: History
    past: tuple[int, ...] = ()
    index: int = -1  # stays there where the run is not on the grid
    time: float = float("inf")
    output: Any = None  # the last one computed, without its tensor


@dataclass
class ScheduleHook(ModelHook):  # type: ignore[misc]
    """Answers calls of a denoiser by a plan. Made by `hook`; a context manager.

    Arguments:
        module: The denoiser.
        forecast: What is used at skipped steps.
        times: The grid, with shape (N,).
        plan: The numbers of the computed steps.
        gear: Which plan of the schedule it is.
        computed: Calls that were made, since it was put on.
        skipped: Calls that were answered by a forecast.
    """

    module: nn.Module
    forecast: Forecast
    times: tuple[float, ...]
    plan: frozenset[int]
    gear: int = 0
    computed: int = 0
    skipped: int = 0
    scale: float = field(default=0.0, init=False)  # of times that the denoiser is given; 0 off the grid

    _is_stateful = True

    def __post_init__(self) -> None:
        super().__init__()
        self.depth, self.latents = self.forecast.depth, self.forecast.keeps_latents
        self.context = StateManager(BaseState)  # diffusers tells it the context; states are kept here
        self.states: dict[str, BranchState] = {}

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Calls the denoiser, or returns a forecast of what it would return."""
        context, x, given = self.context._context, entering(args, kwargs), time_argument(args, kwargs)
        name, at = (context.name, getattr(context, "step_index", None)) if context else ("", None)
        time = float("nan") if given is None else number_of(given)
        state = self._state(name, time)
        index = state.index = self._find(state, time, at)
        step = Step(index, self.times, state.past, self.gear)
        due = tuple(sorted((i for i in self.plan if i < index), reverse=True))
        if index < 0 or x is None or index in self.plan or state.past[: self.depth] != due[: self.depth]:
            self.computed += 1
            try:
                output = self.fn_ref.original_forward(*args, **kwargs)
            except BaseException:
                self.states.clear()  # the next call begins a run
                raise
            if index >= 0 and x is not None:
                self._keep(state, index, x, output)
                if self.forecast.corrects(step) and state.past[1 : self.depth] == due[: self.depth - 1]:
                    return join_tensors(state.output, [self.forecast.combine(state.history.known("", x), step)])
            return output
        self.skipped += 1
        return join_tensors(state.output, [self.forecast.combine(state.history.known("", x), step)])

    def _state(self, name: str, time: float) -> BranchState:
        """Returns the state of a branch; a new one where a run begins, as times fall within one."""
        state = self.states.get(name)
        if state is not None and time < state.time:
            return state
        if state is not None and time == state.time and state.index in range(len(self.times) - 1):
            self.states.clear()
            raise LoopError(
                f"the denoiser is called twice at time {time:g} in one cache context: branches cannot be told apart; "
                "call it inside of transformer.cache_context('cond') and cache_context('uncond') (or a run was broken "
                "off there: begin again)"
            )
        for other in [other for other, old in self.states.items() if old.time != time]:  # of the run before
            del self.states[other]
        self.scale = next((s for s in (1.0, 1000.0) if abs(time / s - self.times[0]) <= ROUNDED), 0.0)
        state = self.states[name] = BranchState(History(self.depth, self.latents))
        if not self.scale:
            self._off(time, 0)
        return state

    def _find(self, state: BranchState, time: float, at: int | None) -> int:
        """Returns the number of the step of a call; -1 where the run is not on the grid."""
        first, state.time = state.time == float("inf"), time
        if not self.scale or (state.index < 0 and not first):
            return -1
        expected = state.index + 1 if at is None else int(at)
        later = range(expected, len(self.times))  # guidance may begin late
        known = time / self.scale
        found = next((i for i in later if abs(known - self.times[i]) <= ROUNDED * self.times[i] + 1e-4), -1)
        if found < 0:
            self._off(time, expected)
        return found

    def _off(self, time: float, expected: int) -> None:
        warnings.warn(
            f"the denoiser is called at time {time:g}, which is not step {expected} of the schedule's "
            f"{len(self.times)}: this run is computed in full; attach plans anew where there is a pipeline",
            stacklevel=6,
        )

    def _keep(self, state: BranchState, index: int, x: Tensor, output: Any) -> None:
        holes, tensors = split_tensors(output)
        if len(tensors) != 1:
            raise ScheduleError(
                f"the denoiser returns {len(tensors)} tensors, and this hook knows one: attach instead"
            )
        (tensor,) = tensors
        if tensor.shape != x.shape and (self.latents or uses_latents(self.forecast, self.times, self.plan, self.gear)):
            raise ScheduleError(
                f"the denoiser is given latents of shape {tuple(x.shape)} and returns {tuple(tensor.shape)}, and the "
                "schedule uses both: this hook cannot be exact here; attach to the pipeline"
            )
        state.history.keep("", x, tensor)
        state.past, state.output = (index, *state.past), holes

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.states.clear()
        return module

    def close(self) -> None:
        """Takes the hook off. Safe to call twice."""
        registry = HookRegistry.check_if_exists_or_initialize(self.module)
        registry.remove_hook(NAME, recurse=False)
        self.states.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def uses_latents(forecast: Forecast, times: tuple[float, ...], plan: frozenset[int], gear: int) -> bool:
    """Whether any forecast of a plan weighs latents."""
    for index in range(len(times)):
        step = Step(index, times, tuple(sorted((i for i in plan if i < index), reverse=True)), gear)
        if index in plan and not forecast.corrects(step):
            continue
        weights = forecast.weights(step)
        if weights.x or weights.x0 or weights.past_x:
            return True
    return False


def hook(transformer: nn.Module, schedule: Any, *, gear: int = 0, linear: bool = False) -> ScheduleHook:
    """Runs a denoiser by a schedule, where there is no pipeline object to attach to.

    Branches are told apart by `transformer.cache_context(name)`, which pipelines of diffusers set; one call with both
    in a batch needs none. A run on another grid is computed in full, with a warning. The time is read from the device
    at each call, so a call waits for it.

    Arguments:
        transformer: The denoiser.
        schedule: What `adaptcache.calibrate` or `Schedule.load` returned; or a file, a folder, or a hub id.
        gear: Which plan.
        linear: You vouch for guidance that is linear, with weights that sum to one, and for outputs that reach the
            scheduler with their sign: for pipelines that are not in `EXACT`.

    Returns:
        The hook: a context manager, with `computed`, `skipped` and `close()`.

    Raises:
        AttachError: There is a hook or a cache already.
        ScheduleError: It could not be exact, or decides by what it sees in a run.

    Example:
        >>> with adaptcache.hook(transformer, "flux.json") as hooked:
        ...     sample(transformer)
        >>> print(hooked.computed, hooked.skipped)
    """
    schedule, gear = as_schedule(schedule).resolve_gear(gear)
    rule, made, module = schedule.rules[0], schedule.made, plain_module(transformer)
    if schedule.denoiser.class_name not in ("", type(module).__name__):
        raise ScheduleError(
            f"{schedule.name} was fitted on a {schedule.denoiser.class_name}, this is a {type(module).__name__}"
        )
    if rule.site != "step" or len(schedule.rules) > 1 or not rule.policy.static or not schedule.grid.times:
        raise ScheduleError(
            f"{schedule.name} has no plan of whole steps on a grid of its own, which this hook follows: attach instead"
        )
    if schedule.reads_branches:
        raise ScheduleError(f"{schedule.name} {ONE_OUTPUT.format(where='a hook in the denoiser')}; or attach")
    if type(rule.forecast).combine is not Forecast.combine:
        raise ScheduleError(f"the forecast {rule.forecast.type!r} is no weighted sum of outputs and latents: attach")
    call = made.get("call") or {}
    if wrong := [f"{name}={call[name]}" for name in NOT_LINEAR if call.get(name)]:
        raise ScheduleError(f"{schedule.name} was fitted with {wrong[0]}, which is not linear in the branches: attach")
    if not linear and made.get("pipeline") not in EXACT:
        raise ScheduleError(
            f"{schedule.name} was fitted with {made.get('pipeline') or 'an unknown pipeline'}, whose guidance and "
            "signs were not tested with this hook: attach to the pipeline, or vouch for it with linear=True"
        )
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if registry.get_hook(NAME) is not None or getattr(module, "_cache_config", None) is not None:
        raise AttachError("this denoiser has a schedule or a cache already: close() or disable_cache() first")
    plan = frozenset(schedule.steps(gear))
    found = ScheduleHook(module, rule.forecast, schedule.grid.times, plan, gear)
    registry.register_hook(found, NAME)
    return found
