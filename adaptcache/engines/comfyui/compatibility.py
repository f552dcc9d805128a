"""How well a schedule fits a MODEL and a sampling run: every difference from what it was fitted on, with a grade."""

from collections.abc import Iterator
from typing import Any

from ...schedule.findings import ONE_OUTPUT, Finding, Grade, too_strong
from ...schedule.schedule import Schedule
from .gate import Run
from .grid import name_of, prediction_of
from .identity import denoiser_class, fingerprint

SAME = {  # samplers, and the schedulers of diffusers that take the same steps: of flow-matching models, and of others
    "ddim": ("", "DDIMScheduler"),
    "ddpm": ("", "DDPMScheduler"),
    "deis": ("DEISMultistepScheduler", "DEISMultistepScheduler"),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"),
    "euler": ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"),
    "euler_ancestral": ("", "EulerAncestralDiscreteScheduler"),
    "lcm": ("FlowMatchLCMScheduler", "LCMScheduler"),
    "uni_pc": ("UniPCMultistepScheduler", "UniPCMultistepScheduler"),
}
PLAIN = {  # schedulers of diffusers whose latents are x0 + sigma * noise
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
}  # fmt: skip
PARTS = {  # of conditionings that make another task of it
    "control": "a ControlNet", "reference_latents": "reference images", "gligen": "GLIGEN",
    "concat_latent_image": "an image to go on from", "unclip_conditioning": "unCLIP",
}  # fmt: skip
GUIDERS = {"CFGGuider", "Guider_Basic"}
CACHES = {"lazycache": "LazyCache", "easycache": "EasyCache"}  # by keys of wrappers; options have the latter for both


def scheduler_name(sampler: str, prediction: str) -> str:
    """Returns what schedules call a sampler: the scheduler of diffusers with the same steps, where there is one."""
    flow = prediction == "flow_prediction"
    return SAME.get(sampler, ("", ""))[0 if flow else 1] or f"ComfyUI {sampler}"


def knows_plain(schedule: Schedule) -> bool:
    """Whether a schedule knows the latents of models with added noise as x0 + sigma * noise."""
    return schedule.grid.scheduler in PLAIN


def other_cache(model_options: dict[str, Any], wrappers: dict[str, Any]) -> str:
    """Returns the name of a cache of ComfyUI that is on; "" where none is."""
    options = model_options.get("transformer_options", {})
    keys = {key for kind in (*wrappers.values(), *options.get("wrappers", {}).values()) for key in kind}
    return next((name for key, name in CACHES.items() if key in keys or key in options), "")


def compare_model(schedule: Schedule, model: Any) -> Iterator[Finding]:
    """Yields how a MODEL differs from what a schedule was fitted on."""
    sites = sorted({rule.site for rule in schedule.rules} - {"step"})
    if sites:
        says = f"skips at the site {', '.join(sites)}; in ComfyUI whole steps are skipped: calibrate for the site step"
        yield Finding("site", Grade.REFUSED, says)
    if schedule.reads_branches:
        yield Finding("branches", Grade.REFUSED, ONE_OUTPUT.format(where="ComfyUI"))
    yield from _denoiser(schedule, model)
    yield from _prediction(schedule, model)


def _denoiser(schedule: Schedule, model: Any) -> Iterator[Finding]:
    fitted, (own, known) = schedule.denoiser.class_name, denoiser_class(model)
    if not fitted:
        return
    if fitted not in known:
        says = f"was fitted on a {fitted}, this MODEL has a {own}; calibrate for this one"
        yield Finding("denoiser", Grade.REFUSED, says)
    elif (made := schedule.made.get("model")) is None:
        says = (
            "was fitted in diffusers, whose weights cannot be compared with those of a MODEL "
            f"({schedule.denoiser.checkpoint or 'unknown checkpoint'}): see that they are the same"
        )
        yield Finding("weights", Grade.WARNED, says)
    elif (here := fingerprint(model))["weights_hash"] != made["weights_hash"]:
        patched = f"{made.get('patched', 0)} patched weights, here {here['patched']}"
        says = f"was fitted on other weights of {own} ({patched}): its evidence does not hold here; calibrate again"
        yield Finding("weights", Grade.WARNED, says)
    elif here["config_hash"] != made["config_hash"]:
        says = f"was fitted on a {own} with other settings or other nodes on it (shift, patches): it was not measured"
        yield Finding("configuration", Grade.WARNED, says)


def _prediction(schedule: Schedule, model: Any) -> Iterator[Finding]:
    before, name = schedule.made.get("scheduler") or {}, schedule.grid.scheduler
    if not name:
        return
    here = prediction_of(model.get_model_object("model_sampling"))
    flow = name.startswith("FlowMatch") or before.get("use_flow_sigmas")
    fitted = before.get("prediction_type") or ("flow_prediction" if flow else "epsilon")
    # Here every output is (x - denoised) / sigma: for these two that is what diffusers' denoisers return.
    alike = here == fitted and ("comfyui" in schedule.made or here in ("flow_prediction", "epsilon"))
    if not alike:
        says = f"was fitted on outputs of another kind ({fitted}, this MODEL: {here}); calibrate in ComfyUI"
        yield Finding("prediction", Grade.REFUSED, says)


def cache_on(run: Run) -> Iterator[Finding]:
    """Yields that a cache of ComfyUI is on, where one is."""
    if name := other_cache(run.guider.model_options, run.guider.model_patcher.wrappers):
        says = (
            f"would run on top of {name}, which skips on its own and does not see what is skipped here: that was not "
            "measured; take one of the two out"
        )
        yield Finding("cache", Grade.WARNED, says)


def compare_run(schedule: Schedule, run: Run) -> Iterator[Finding]:
    """Yields how a sampling run differs from what a schedule was fitted on; steps are compared as it goes."""
    yield from cache_on(run)
    sampler, fitted = name_of(run.sampler), schedule.grid.scheduler
    own = schedule.made.get("sampler")
    if fitted and (own != sampler if own else fitted not in SAME.get(sampler, ())):
        says = f"was fitted with {own or fitted}, this is {sampler}: it was not measured with this one"
        yield Finding("sampler", Grade.WARNED, says)
    yield from _call(schedule, run)


def guidance_of(run: Run) -> dict[str, float]:
    """Returns how strongly a run is guided: by CFG, and by the number that distilled models are given."""
    found = {"cfg": float(getattr(run.guider, "cfg", 1.0))}
    values = {cond["guidance"] for cond in run.guider.conds.get("positive") or () if "guidance" in cond}
    return found | ({"guidance": float(max(values))} if values else {})


def parts_of(run: Run) -> list[str]:
    """Returns what besides texts the conditionings of a run hold."""
    return sorted(PARTS.keys() & {key for cond in run.guider.conds.get("positive") or () for key in cond})


def size_of(run: Run) -> list[int]:
    """Returns the shape of a sample's latents."""
    return list(run.noise.shape[1:])


def _call(schedule: Schedule, run: Run) -> Iterator[Finding]:
    made = schedule.made.get("call")
    if made is None:
        return
    here = guidance_of(run)
    if "comfyui" in schedule.made:
        before = {name: float(made[name]) for name in here if name in made}
    else:  # made in diffusers, where both have one name
        strength = made.get("true_cfg_scale", made.get("guidance_scale"))
        embedded = "guidance" in here and "true_cfg_scale" not in made
        before = {} if strength is None else {"guidance" if embedded else "cfg": max(1.0, float(strength))}
    for name, value in before.items():
        if abs(here[name] - value) <= 1e-6:
            continue
        says = f"was fitted at another guidance: {name} {value:g} and now {here[name]:g}"
        if name == "cfg" and too_strong(value, here[name]):
            says += "; as many plain steps are better there: calibrate at this cfg"
            yield Finding("guidance", Grade.REFUSED, says)
        else:
            yield Finding("guidance", Grade.WARNED, f"{says}; it was not measured here")
    if (name := type(run.guider).__name__) not in GUIDERS:
        yield Finding("guider", Grade.WARNED, f"was fitted with plain CFG, this run has a {name}: it was not measured")
    if more := set(parts_of(run)) ^ set(made.get("parts", ())):
        says = (
            f"was fitted on other conditionings: {' and '.join(PARTS[part] for part in sorted(more))} on one side only"
        )
        yield Finding("conditioning", Grade.WARNED, f"{says}; it was not measured")
    if (size := made.get("latent")) and list(size) != size_of(run):
        shapes = (" x ".join(map(str, shape)) for shape in (size, size_of(run)))
        says = "was fitted at another size: latents of {} and now {}; it was not measured here".format(*shapes)
        yield Finding("size", Grade.WARNED, says)
