"""vLLM-Omni: a cache backend named `adaptcache`, for pipelines with its shared guidance methods.

Found by the entry point `vllm_omni.general_plugins`; used with `--cache-backend adaptcache` and, in `--cache-config`,
`schedule`, `quality` and `strict`, or with the environment variables of the same meaning. At a skipped step the
pipeline gets the output of the last computed one, and the scheduler the forecast of the guided output. Looked at with
vLLM-Omni 0.30.0.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..errors import ScheduleError
from ..step import entering
from .diffusers.gate import Track
from .diffusers.grid import times_of
from .serving import QUALITIES, SOURCE, Request, RequestCall, Server, ServingConfig, world_size

NAME = "adaptcache"  # of the backend, and of what requests choose in `extra_args`
SELECTOR = "vllm_omni.diffusion.cache.selector"
RUNNER = "vllm_omni.diffusion.worker.diffusion_model_runner"
PREDICT = ("predict_noise_maybe_with_cfg", "predict_noise_with_multi_branch_cfg")
STEP = "scheduler_step_maybe_with_cfg"
SIZE = ("height", "width", "num_frames", "guidance_rescale")

_request: ContextVar[Running | None] = ContextVar("adaptcache_request", default=None)


def register() -> None:
    """Makes `--cache-backend adaptcache` known. Called by vLLM-Omni in each of its processes, perhaps repeatedly."""
    import vllm_omni.diffusion.cache.selector as selector

    original = selector.get_cache_backend
    if getattr(original, "adaptcache", False):
        return

    @functools.wraps(original)
    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        return backend(cache_config) if cache_backend == NAME else original(cache_backend, cache_config)

    get_cache_backend.adaptcache = True  # type: ignore[attr-defined]
    for module in (SELECTOR, RUNNER):  # the runner keeps a name of its own for it
        if getattr(sys.modules.get(module), "get_cache_backend", None) is original:
            sys.modules[module].get_cache_backend = get_cache_backend  # type: ignore[attr-defined]


def backend(cache_config: Any) -> Any:
    """Returns the backend for what `--cache-config` says.

    Raises:
        ScheduleError: No schedule is named.
    """
    from vllm.logger import init_logger
    from vllm_omni.diffusion.cache.base import CacheBackend
    from vllm_omni.diffusion.data import DiffusionCacheConfig

    if isinstance(cache_config, dict):
        cache_config = DiffusionCacheConfig.from_dict(cache_config)
    if (found := ServingConfig.of(getattr(cache_config, "_extra_params", {}))) is None:
        raise ScheduleError(
            f'--cache-backend {NAME} without a schedule: --cache-config \'{{"schedule": "flux.json"}}\', or {SOURCE}'
        )
    config = found

    class AdaptcacheBackend(CacheBackend):  # type: ignore[misc]
        """Runs requests by schedules."""

        server: Server

        def enable(self, pipeline: Any) -> None:
            self.server = wrap(pipeline, config, init_logger(__name__).info)
            self.enabled = True

        def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
            """Has nothing to do: histories belong to requests."""

    return AdaptcacheBackend(cache_config)


def wrap(pipeline: Any, config: ServingConfig, log: Callable[[str], None]) -> Server:
    """Wraps the methods of a pipeline through which its loop goes.

    Raises:
        ScheduleError: It has none.
    """
    missing = [name for name in (PREDICT[0], STEP, "forward") if not callable(getattr(pipeline, name, None))]
    if missing:
        raise ScheduleError(
            f"{type(pipeline).__name__} has no {', '.join(missing)}, through which adaptcache follows a loop: "
            "serve it without --cache-backend adaptcache"
        )
    server = Server(config, type(pipeline.transformer).__name__, log)

    def around(name: str, call: Callable[..., Any]) -> None:
        original = getattr(pipeline, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return call(original, *args, **kwargs)

        vars(pipeline)[name] = wrapped  # past nn.Module, which looks for parameters in what is set

    around("forward", functools.partial(forward, server, pipeline))
    for name in PREDICT:
        if hasattr(pipeline, name):
            around(name, predict)
    around(STEP, step)
    return server


@dataclass
class Running:
    """The request under way in this thread."""

    request: Request  # its run by a schedule
    pipeline: Any
    batch: Any  # the requests of one forward, called alike
    guidance: Any = None
    branches: float = 1.0
    output: Any = None  # the last computed one
    track: Track | None = None


def forward(server: Server, pipeline: Any, original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands around the requests of one forward."""
    wanted = [quality_of(params) for params in batch.sampling_params_list]
    refused = "" if len(set(map(str, wanted))) == 1 else f"requests of one batch want {wanted}"
    name = ", ".join(map(str, batch.request_ids))
    with Request(server, wanted[0], name, refused, world_size() == 1) as request:
        token = _request.set(Running(request, pipeline, batch))
        try:
            return original(batch, *args, **kwargs)
        finally:
            _request.reset(token)


def quality_of(params: Any) -> Any:
    """Returns what a request asks for: `extra_args` of our name, or vLLM-Omni's own word for no approximation."""
    wanted = (params.extra_args or {}).get(NAME)
    return QUALITIES[-1] if wanted is None and params.quality == "lossless" else wanted


def predict(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Returns the guided output of a step: computed, or the last one in place of it."""
    running = _request.get()
    if running is None:
        return original(*args, **kwargs)
    named = dict(zip(("do_true_cfg", "true_cfg_scale", "branches"), args, strict=False)) | kwargs
    scale = named.get("true_cfg_scale") if named.get("do_true_cfg") else 1.0
    branches = named.get("branches", named.get("positive_kwargs", named.get("branches_kwargs")))
    first = branches[0] if isinstance(branches, list) else branches
    running.guidance = scale if isinstance(scale, (int, float)) else None
    if named.get("do_true_cfg"):
        running.branches = float(len(branches)) if isinstance(branches, list) else 2.0
    if running.request.begin(entering((), first or {})):
        running.output = original(*args, **kwargs)
    return running.output


def step(original: Callable[..., Any], noise_pred: Any, t: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
    """Lets the scheduler step with what is computed, or forecast."""
    running = _request.get()
    if running is None or not running.request.open:
        return original(noise_pred, t, latents, *args, **kwargs)
    request, time = running.request, t[0] if isinstance(t, tuple) else t
    if request.index == 0:
        scheduler = scheduler_of(running.pipeline, kwargs.get("per_request_scheduler"))
        running.track = Track(scheduler, time)
        request.start(times_of(scheduler)[running.track.begin :], asked(running, type(scheduler).__name__))
    elif running.track is not None and not running.track.is_at(time, request.index):
        request.lost(f"is given the time {float(time):g} at step {request.index}")
    return original(request.end(latents, noise_pred), t, latents, *args, **kwargs)


def scheduler_of(pipeline: Any, own: Any) -> Any:
    """Returns the scheduler that tells the grid; the first of those that step side by side."""
    scheduler = pipeline.scheduler if own is None else own
    if not hasattr(scheduler, "timesteps"):  # a composite, for video and audio
        scheduler = next(one for one in vars(scheduler).values() if hasattr(one, "timesteps"))
    return scheduler


def asked(running: Running, scheduler: str) -> RequestCall:
    """Returns how a request is called."""
    params, denoiser = running.batch.sampling_params_list[0], running.pipeline.transformer
    embeds = getattr(getattr(denoiser, "config", None), "guidance_embeds", vars(denoiser).get("guidance_embeds"))
    settings = {name: getattr(params, name, None) for name in SIZE}
    embedded = params.guidance_scale if embeds else None
    return RequestCall(running.guidance, embedded, settings, scheduler, running.branches)
