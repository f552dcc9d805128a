"""SGLang's diffusion engine: its denoising stage asks a schedule before each step.

Found by the entry point `sglang.multimodal_gen.plugins`, and silent until ADAPTCACHE_SCHEDULE names a schedule. Two
methods are wrapped by SGLang's own registry of hooks: `forward` stands around a request, `_predict_noise_with_cfg`
returns the guided output that the scheduler is given next. Looked at with SGLang 0.5.23.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from .diffusers.grid import times_of
from .serving import QUALITIES, SOURCE, Request, RequestCall, Server, ServingConfig, load_schedules, world_size

STAGE = "sglang.multimodal_gen.runtime.pipelines_core.stages.denoising.DenoisingStage"
KEY = "adaptcache"  # in `batch.extra` of a request under way, and in its `diffusers_kwargs`
SIZE = ("height", "width", "num_frames", "guidance_rescale")


def register() -> None:
    """Registers the hooks. Called by SGLang in each of its processes."""
    if (config := ServingConfig.of({})) is None:
        logging.getLogger(__name__).debug("%s names no schedule: adaptcache stays off", SOURCE)
        return
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType
    from sglang.multimodal_gen.runtime.utils.logging_utils import init_logger

    Plugin(config, init_logger(__name__).info).hook(HookRegistry, HookType.AROUND)


class Plugin:
    """What requests of this process go through.

    Raises:
        ScheduleError: No schedule can be served. SGLang logs it at its start, and runs requests as without a plug-in.
    """

    def __init__(self, config: ServingConfig, log: Callable[[str], None]) -> None:
        self.config, self.log, self.known = config, log, load_schedules(config.source)
        self.servers: dict[str, Server] = {}  # by the class of the denoiser
        self._lock = threading.Lock()

    def hook(self, registry: Any, around: Any) -> None:
        """Registers the hooks in SGLang's registry."""
        registry.register(f"{STAGE}.forward", self.follow, around)
        registry.register(f"{STAGE}._predict_noise_with_cfg", predict, around)

    def server(self, denoiser: Any) -> Server:
        """Returns the server of a model; one for all its requests."""
        name = type(denoiser).__name__
        with self._lock:
            if name not in self.servers:
                self.servers[name] = Server(self.config, name, self.log, self.known)
            return self.servers[name]

    def follow(self, original: Callable[..., Any], stage: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Stands around a request: its history lives in the request, and goes with it."""
        if batch.is_warmup:
            return original(stage, batch, *args, **kwargs)
        wanted = (batch.extra.get("diffusers_kwargs") or {}).get(KEY)
        if wanted is None and batch.sampling_params.quality == QUALITIES[-1]:  # SGLang's own word: bit for bit
            wanted = QUALITIES[-1]
        name, server = str(getattr(batch, "request_id", None) or ""), self.server(stage.transformer)
        other = "cache-dit is on" if stage._cache_dit_requested_for_batch(batch) else ""  # skips parts of the request
        with Request(server, wanted, name, other, world_size() == 1) as request:
            batch.extra[KEY] = request
            try:
                return original(stage, batch, *args, **kwargs)
            finally:
                batch.extra.pop(KEY, None)


def predict(original: Callable[..., Any], stage: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the guided output of a step: computed, or forecast.

    SGLang names all arguments; where another caller does not, or there is no request, the step is computed.
    """
    batch = kwargs.get("batch")
    request: Request | None = batch.extra.get(KEY) if batch is not None else None
    if request is None or args:
        return original(stage, *args, **kwargs)
    index, x = int(kwargs["timestep_index"]), kwargs["latents"]
    if index == 0:
        if (kwargs.get("cfg_gate_state") or {}).get("active"):
            request.refuse("cfg_gate_step is on")
        request.restart()
        request.start(grid(batch), asked(batch, kwargs))
    compute = request.begin(kwargs["latent_model_input"])
    request.moved(index)
    return request.end(x, original(stage, **kwargs) if compute else x)


def grid(batch: Any) -> tuple[float, ...]:
    """Returns the times of a request, which may start late in its scheduler's grid."""
    return times_of(batch.scheduler)[-len(batch.timesteps) :]


def asked(batch: Any, kwargs: dict[str, Any]) -> RequestCall:
    """Returns how a request is called."""
    config, given = kwargs["server_args"].pipeline_config, batch.sampling_params
    embedded = config.embedded_cfg_scale if kwargs.get("guidance") is not None else None
    strength = given.guidance_scale if given.true_cfg_scale is None else given.true_cfg_scale
    settings = {name: getattr(given, name, None) for name in SIZE}
    guidance = strength if batch.do_classifier_free_guidance else 1.0
    branches = float(len(kwargs["cfg_policy"].branches))
    return RequestCall(guidance, embedded, settings, type(batch.scheduler).__name__, branches)
