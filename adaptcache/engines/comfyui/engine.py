"""Runs a MODEL of ComfyUI for calibration and evaluation: one batch, watched by a hook."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import __version__
from ...errors import AttachError
from ...hooks import StepHook
from ...runs import Job, Outcome, PipelineCall, PromptSet, fork_rng
from ...schedule.findings import Finding, check_findings
from ...schedule.schedule import Schedule
from .compatibility import PLAIN, compare_model, other_cache, parts_of, scheduler_name
from .gate import KEY, Gate, Run, Switch, watched
from .grid import name_of, prediction_of
from .identity import denoiser_class, fingerprint, plain


@dataclass(frozen=True)
class Sampling:
    """How a MODEL is sampled: what a KSampler node is given."""

    negative: Any  # the negative conditioning
    latent: Tensor  # what to start from, of one sample, with shape (1, *): zeros for text to image
    sampler: Any = "euler"  # the name of a sampler, or a SAMPLER
    scheduler: str = "simple"  # gives the noise levels
    cfg: float = 1.0  # how strongly it is guided
    denoise: float = 1.0  # how much of the noise is added, in (0, 1]; below 1 for image to image


class ComfyEngine:
    """Runs a MODEL of ComfyUI. A prompt is a mapping with the conditioning of one sample as `positive`.

    Arguments:
        model: The MODEL. It is not changed: runs have a clone of it.
        decode: Turns latents with shape (B, *) into images with shape (B, H, W, C), or clips with (B * F, H, W, C).
        check: Called at each denoiser call: raises where the user has cancelled.
    """

    def __init__(
        self, model: Any, sampling: Sampling, decode: Callable[[Tensor], Tensor] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.model, self.sampling, self.decode, self.check_cancelled = model, sampling, decode, check
        self._samplers = importlib.import_module("comfy.samplers")
        latent = importlib.import_module("comfy.sample").fix_empty_latent_channels(model, sampling.latent[:1])
        self.latent: Tensor = latent
        named = isinstance(sampling.sampler, str)
        self.sampler = self._samplers.sampler_object(sampling.sampler) if named else sampling.sampler
        self._parts: list[str] = []  # of the conditionings that were run
        self._switch = Switch()
        self._watched = watched(model, self._switch)  # one for all runs: they share its weights where it loads them

    @property
    def _scheduler(self) -> str:
        sampling = self.model.get_model_object("model_sampling")
        return scheduler_name(name_of(self.sampler), prediction_of(sampling))

    def run(self, hook: StepHook, job: Job) -> Outcome:
        def before(run: Run, times: tuple[float, ...]) -> None:
            self.check_cancelled()
            self._parts = parts_of(run)

        gate = Gate(hook, before, plain=self._scheduler in PLAIN, keep=True, whole=True)
        with hook.install(gate):
            latents = self.sample(self._watched, job, gate)
        return Outcome(self.images(latents, len(job.prompts)) if job.decode else [], gate.made)

    def images(self, latents: Tensor, samples: int = 1) -> list[np.ndarray]:
        """Returns decoded latents, one array a sample: an image, or the frames of a clip."""
        if self.decode is None:
            raise ValueError("decoded images are asked for, and no VAE was given: connect one")
        made = np.asarray(self.decode(latents).detach().to("cpu", torch.float32))
        frames = len(made) // samples  # a clip's frames come one after the other
        return [one[0] if frames == 1 else one for one in made.reshape(-1, frames, *made.shape[1:])]

    def sample(self, model: Any, job: Job, gate: Gate | None = None) -> Tensor:
        """Returns the latents that the engine's MODEL, or one made of it, gives for a batch, with shape (B, *)."""
        sampling, seed, count = self.sampling, job.call.seed + job.prompts.first, len(job.prompts)
        guider = self._samplers.CFGGuider(model)
        guider.set_conds(join_conditionings([own["positive"] for own in job.prompts]), sampling.negative)  # type: ignore[index]
        guider.set_cfg(sampling.cfg)
        if gate:
            self._switch.gates[id(guider)] = gate
        noise = torch.cat([noise_like(self.latent, seed + k) for k in range(count)])
        latent = self.latent.repeat(count, *[1] * (self.latent.ndim - 1))
        sigmas = refined(self.sigmas(job.call.num_inference_steps), job.refine)
        try:
            with fork_rng(), torch.no_grad():
                made: Tensor = guider.sample(
                    noise, latent, self.sampler, sigmas, callback=lambda *step: self.check_cancelled(),
                    disable_pbar=True, seed=seed,
                )  # fmt: skip
        finally:
            self._switch.gates.pop(id(guider), None)
        return made

    def sigmas(self, steps: int) -> Tensor:
        """Returns the noise levels of a run, with shape (N + 1,), as a KSampler node makes them."""
        name = self.sampling.sampler if isinstance(self.sampling.sampler, str) else name_of(self.sampler)
        kind = self._samplers.KSampler
        made = kind(self.model, steps, self.model.load_device, name, self.sampling.scheduler, self.sampling.denoise)
        levels: Tensor = made.sigmas
        return levels

    def takes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns none: all that a KSampler is given is in `Sampling`."""
        return {}

    def identity(self, call: PipelineCall) -> Any:
        sampling = self.sampling
        return [
            "ComfyUI", torch.__version__, fingerprint(self.model), name_of(self.sampler), sampling.scheduler,
            sampling.cfg, sampling.denoise, plain(vars(self.sampler)), plain(sampling.negative),
            self.latent, self.sigmas(call.num_inference_steps), call.seed,
        ]  # fmt: skip

    def describe(self, call: PipelineCall) -> tuple[dict[str, Any], str, str, dict[str, Any]]:
        own, known = denoiser_class(self.model)
        sampling, diffusers = self.sampling, sorted(known - {own})
        version = importlib.import_module("comfyui_version").__version__
        made = {
            "adaptcache": __version__, "comfyui": version, "torch": torch.__version__, "pipeline": "ComfyUI",
            "dtype": str(self.model.model_dtype()).removeprefix("torch."), "model": fingerprint(self.model),
            "sampler": name_of(self.sampler), "steps": call.num_inference_steps, "seed": call.seed,
            "scheduler": {
                "name": sampling.scheduler,
                "prediction_type": prediction_of(self.model.get_model_object("model_sampling")),
            },
            "call": {
                "cfg": sampling.cfg, "denoise": sampling.denoise, "latent": list(self.latent.shape[1:]),
                "parts": self._parts,
            },
        }  # fmt: skip
        name = diffusers[0] if len(diffusers) == 1 else own
        return {"class_name": name}, self._scheduler, own, made

    def check(self, schedule: Schedule, strict: bool = False) -> list[Finding]:
        found = list(compare_model(schedule, self.model))
        check_findings(schedule, found, strict)
        return found

    def preflight(self, call: PipelineCall, prompts: PromptSet) -> None:
        """Raises what would come up after work.

        Raises:
            AttachError: A schedule is on the MODEL already, or the sampler cannot be followed.
            TypeError: A prompt is no conditioning.
            ValueError: A cache of ComfyUI is on.
        """
        for number, prompt in enumerate(prompts):
            if isinstance(prompt, str) or "positive" not in prompt:
                raise TypeError(f"prompt {number} needs a conditioning: give {{'positive': conditioning}}")
        if self.model.get_wrappers("sampler_sample", KEY):
            raise AttachError("a schedule is on this MODEL: calibrate on the MODEL before Apply Schedule")
        if name := other_cache(self.model.model_options, self.model.wrappers):
            raise ValueError(f"{name} is on this MODEL: its full runs would not be full; take it out, then calibrate")


def noise_like(latent: Tensor, seed: int) -> Tensor:
    """Returns the noise of a sample, the same as a KSampler node with this seed draws."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(latent.shape, dtype=latent.dtype, layout=latent.layout, generator=generator, device="cpu")


def refined(sigmas: Tensor, refine: int) -> Tensor:
    """Returns noise levels with `refine` even steps in each step."""
    if refine == 1:
        return sigmas
    parts = torch.arange(refine, device=sigmas.device) / refine
    between = sigmas[:-1, None] + (sigmas[1:] - sigmas[:-1])[:, None] * parts
    return torch.cat([between.flatten(), sigmas[-1:]])


def join_conditionings(given: Sequence[Any]) -> Any:
    """Returns the conditionings of several samples as that of a batch: tensors are joined.

    Raises:
        ValueError: They have other parts, or other shapes.
    """
    if len(given) == 1:
        return given[0]
    rows = [[*one[0]] for one in given if len(one) == 1]
    alike = len(rows) == len(given) and all(row[1].keys() == rows[0][1].keys() for row in rows)
    parts = [{"": row[0], **row[1]} for row in rows] if alike else []
    joined = {name: _joined([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    if not joined or any(value is NotImplemented for value in joined.values()):
        raise ValueError(
            "these conditionings differ in their parts or lengths, so they cannot be one batch: give batch_size=1"
        )
    return [[joined.pop(""), joined]]


def _joined(values: Sequence[Any]) -> Any:
    """Returns one part of several conditionings as that of a batch; NotImplemented where they differ."""
    if all(isinstance(value, Tensor) for value in values):
        return torch.cat(list(values)) if len({value.shape[1:] for value in values}) == 1 else NotImplemented
    return values[0] if all(value == values[0] for value in values) else NotImplemented
