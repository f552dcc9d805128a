"""How well a schedule fits a pipeline and a call of it: every difference from what it was fitted on, with a grade."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...distributed import sharded
from ...files import dump_json
from ...forecasts.matched import Matched
from ...runs import SET_HERE
from ...schedule.findings import FARTHEST, Finding, Grade, check_findings, explain_findings, too_strong, worst_grade
from ...schedule.schedule import Schedule
from .calls import defaults_of, named_inputs
from .components import denoisers_of, find_denoisers, find_guiders, find_schedulers, plain_module
from .identity import checkpoint_of, components_of, config_of, fingerprint, guiders_of, provenance

logger = logging.getLogger(__name__)

GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "image_guidance_scale", "max_guidance_scale")
SIZE = ("height", "width", "num_frames", "audio_end_in_s")
GRID = {  # what of a scheduler's configuration moves its steps and nothing else
    "base_image_seq_len", "base_shift", "beta_end", "beta_schedule", "beta_start", "flow_shift",
    "invert_sigmas", "max_image_seq_len", "max_shift", "rescale_betas_zero_snr", "shift", "shift_terminal",
    "sigma_max", "sigma_min", "steps_offset", "time_shift_type", "timestep_spacing", "use_beta_sigmas",
    "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas",
}  # fmt: skip
CONTENT = {  # arguments that say what is made, how many, and in which form, or that the grid of the run tells
    "num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "batch_size", "num_inference_steps",
    "strength", "denoising_start", "denoising_end", "output_type", "return_dict", "callback_steps",
    "attention_kwargs_scale", "callback_on_step_end_tensor_inputs", "class_labels", "seed", "sigmas", "timesteps",
    "lyrics",
}  # fmt: skip
LOST = "its evidence does not hold here; calibrate again"
FROM_COND = ("ZImage",)  # families whose guidance_scale counts from the branch with the prompt: a guider's less 1


def graded(
    schedule: Schedule, pipe: Any, call: Mapping[str, Any] | None = None, steps: int | None = None
) -> list[Finding]:
    """Compares what a schedule was fitted on with a pipeline. Changes nothing.

    What a schedule does not say is not compared: those of other sources may know little of themselves.

    Arguments:
        call: The arguments it is going to be called with; None leaves guidance and size out.
        steps: The number of steps of the call; None leaves them out.

    Returns:
        The differences, worst first; none where all is as it was.
    """
    here = provenance(pipe)
    found = [*_denoiser(schedule, pipe, here), *_components(schedule, pipe)]
    found += [*_pipeline(schedule, here), *_scheduler(schedule, pipe, here), *_guiders(schedule, here)]
    found += _other_cache(pipe)
    if call is not None:
        found += _call(schedule, pipe, call)
    if steps is not None and schedule.grid.steps not in (0, steps):
        if schedule.grid.full:
            says = f"was fitted on {schedule.grid.steps} steps, not {steps}: its own times there were not measured"
            found.append(Finding("steps", Grade.WARNED, says))
        else:
            found.append(Finding("steps", *_replanned(schedule, f"{schedule.grid.steps} steps", f"{steps}")))
    return sorted(found, key=lambda finding: -finding.grade)


def check_schedule(schedule: Schedule, pipe: Any, strict: bool = False) -> list[Finding]:
    """Returns how a pipeline differs from what a schedule was fitted on; warns of what was not measured.

    Raises:
        ScheduleError: The schedule does not fit; with `strict`, also where it would warn.
    """
    found = graded(schedule, pipe)
    check_findings(schedule, found, strict)
    if worst_grade(found) == Grade.WARNED:
        warnings.warn(explain_findings(schedule, found), stacklevel=4)
    elif found:
        logger.info(explain_findings(schedule, found))
    return found


def graded_call(schedule: Schedule, pipe: Any, arguments: Mapping[str, Any]) -> list[Finding]:
    """Returns what in one call of an attached pipeline was not measured; steps are looked at when it runs.

    Arguments are by name; sizes that are left to the pipeline are not compared.
    """
    made, arguments = schedule.made.get("call") or {}, named_inputs(pipe, arguments)
    chosen = {name for name in SIZE if arguments.get(name) is not None and made.get(name) is not None}
    given = {name: value for name, value in arguments.items() if name not in SIZE or name in chosen}
    sizes = {name: made[name] for name in SIZE if name in made and name not in chosen}
    found = [*_other_cache(pipe), *_call(schedule, pipe, {**given, **sizes})]
    if schedule.from_theory and (before := schedule.made.get("guidance")) != (now := guidance_of(pipe, arguments)):
        found += _other_guidance(f"guidance {before} and now {now:g}", [(before, now)])
    return [finding for finding in found if finding.grade >= Grade.WARNED]


def other_cache(pipe: Any) -> str:
    """Returns the name of a cache that is on in a denoiser: diffusers', cache-dit or our hook; "" where none is."""
    for denoiser in denoisers_of(pipe):
        module = getattr(denoiser, "_orig_mod", denoiser)
        if (config := getattr(module, "_cache_config", None)) is not None:
            return type(config).__name__.removesuffix("Config")
        if "adaptcache" in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}):
            return "adaptcache.hook"
        if getattr(module, "_is_cached", False):
            return "cache-dit"
    return ""


def _other_cache(pipe: Any) -> Iterator[Finding]:
    if name := other_cache(pipe):
        says = (
            f"would run on top of {name}, which skips on its own at the steps that are computed and does not "
            "see the others: that was not measured; turn one of the two off"
        )
        yield Finding("cache", Grade.WARNED, says)


def _denoiser(schedule: Schedule, pipe: Any, here: Mapping[str, Any]) -> Iterator[Finding]:
    live, fitted = fingerprint(pipe), schedule.denoiser
    known = fitted.checkpoint or "unknown checkpoint"
    if fitted.class_name not in ("", live.class_name):
        says = f"was fitted on a {fitted.class_name}, this pipeline has a {live.class_name}"
        yield Finding("denoiser", Grade.REFUSED, f"{says}; calibrate for this one")
        return
    if fitted.config_hash not in ("", live.config_hash):
        says = f"was fitted on another configuration of {fitted.class_name} ({known}): {LOST}"
        yield Finding("configuration", Grade.WARNED, says)
    elif fitted.weights_hash not in ("", live.weights_hash):
        yield _weights(schedule, pipe, here, f"was fitted on other weights of {fitted.class_name} ({known})")


def _components(schedule: Schedule, pipe: Any) -> Iterator[Finding]:
    """Yields the other modules that are not as they were: a VAE, text encoders, ... and what is set on denoisers."""
    known, own = schedule.made.get("components") or {}, find_denoisers(pipe)
    same_checkpoint = checkpoint_of(pipe) == schedule.denoiser.checkpoint != ""
    changed = []
    for name, here in components_of(pipe).items() if known else ():
        if (before := known.get(name)) is None:
            continue
        unread = not (before["weights"] and here["weights"]) or (same_checkpoint and before["dtype"] != here["dtype"])
        looked_at = (
            ("settings",) if name in own else ("class", "config", "settings", *(() if unread else ("weights",)))
        )
        if differ := [what for what in looked_at if before[what] != here[what]]:
            changed.append(f"{name} ({differ[0] if differ[0] != 'config' else 'configuration'})")
    if changed:
        says = f"was fitted, or attached, with another {', '.join(changed)}: its evidence does not hold here"
        yield Finding("components", Grade.WARNED, says)


def _weights(schedule: Schedule, pipe: Any, here: Mapping[str, Any], says: str) -> Finding:
    made = schedule.made
    if any(weight.is_meta or sharded(weight) for part in denoisers_of(pipe) for weight in part.parameters()):
        return Finding("weights", Grade.FINE, "cannot be compared with weights that are offloaded or sharded")
    loras = made.get("loras", [])
    if here["loras"] != loras:
        names = " and ".join(", ".join(names) or "none" for names in (loras, here["loras"]))
        return Finding("LoRA", Grade.WARNED, f"{says}: LoRAs {names}; {LOST}")
    if loras:
        says = f"was fitted on other weights, or on other scales of the LoRA {', '.join(loras)}"
    same = checkpoint_of(pipe) == schedule.denoiser.checkpoint != ""
    if same and made.get("dtype", here["dtype"]) != here["dtype"]:
        # Rounding changes every value, so that hashes of two precisions never agree.
        return Finding("weights", Grade.FINE, f"was fitted on the same checkpoint in {made['dtype']}")
    return Finding("weights", Grade.WARNED, f"{says}: {LOST}")


def _pipeline(schedule: Schedule, here: Mapping[str, Any]) -> Iterator[Finding]:
    made = schedule.made
    # A classic pipeline and the modular one of its name are the same thing measured.
    if made.get("pipeline", here["pipeline"]).replace("Modular", "") != here["pipeline"].replace("Modular", ""):
        says = f"was fitted with a {made['pipeline']}, this is a {here['pipeline']}: it was not measured here"
        yield Finding("pipeline", Grade.WARNED, says)
    else:
        before, now = made.get("config") or {}, here["config"]
        if differ := [f"{k} {before[k]} and now {now[k]}" for k in before.keys() & now.keys() if before[k] != now[k]]:
            says = f"was fitted with other settings of the {here['pipeline']}: {', '.join(sorted(differ))}"
            yield Finding("settings", Grade.WARNED, f"{says}; it was not measured here")
    if made.get("dtype", here["dtype"]) != here["dtype"]:
        says = f"was measured in {made['dtype']}, this is {here['dtype']}: the plan holds, its decibels may not"
        yield Finding("dtype", Grade.WARNED, says)


def _scheduler(schedule: Schedule, pipe: Any, here: Mapping[str, Any]) -> Iterator[Finding]:
    fitted, name = schedule.grid.scheduler, type(next(iter(find_schedulers(pipe).values()))).__name__
    if fitted not in ("", name):
        says = f"was fitted with {fitted}, this is {name}: it was not measured with this one"
        yield Finding("scheduler", Grade.WARNED, says)
        return
    before, now = schedule.made.get("scheduler") or {}, here["scheduler"]
    differ = sorted(key for key in before.keys() & now.keys() if dump_json(before[key]) != dump_json(now[key]))
    changes = ", ".join(f"{key} {before[key]} and now {now[key]}" for key in differ)
    if "prediction_type" in differ:
        yield Finding("scheduler", Grade.REFUSED, f"was fitted on outputs of another kind: {changes}")
    elif set(differ) - GRID:
        yield Finding("scheduler", Grade.WARNED, f"was fitted with other settings of {name}: {changes}")
    elif differ:
        yield Finding("scheduler", *_replanned(schedule, f"other steps of {name}", changes))


def _guiders(schedule: Schedule, here: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields how the guiders of a pipeline differ; with those of a classic one, its guidance is compared in calls."""
    before, now = schedule.made.get("guiders"), here["guiders"]
    if not before or not now:
        strange = sorted({one["class"] for one in now.values()} - {"ClassifierFreeGuidance"})
        if strange and before is not None:
            yield Finding("guidance", Grade.WARNED, f"was fitted without the {', '.join(strange)} of this pipeline")
        return
    changed = []
    for name in before.keys() | now.keys():
        old, new = before.get(name) or {}, now.get(name) or {}
        differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        changed += [f"{name}.{key} {old.get(key)} and now {new.get(key)}" for key in differ]
    if changed:
        yield from _other_guidance(", ".join(changed), [(_scale(before), _scale(now))])


def _scale(guiders: Mapping[str, Any]) -> float:
    return max((float(one["scale"]) for one in guiders.values()), default=1.0)


def _crossed(schedule: Schedule, pipe: Any, call: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields another guidance where one of schedule and pipeline has guiders, and the other arguments of a call."""
    guiders, here = schedule.made.get("guiders") or {}, guiders_of(pipe)
    known = {**defaults_of(pipe), **call} if guiders else schedule.made["call"]
    classic = known.get("true_cfg_scale") or known.get("guidance_scale") or 1.0
    name = type(pipe).__name__ if guiders else str(schedule.made.get("pipeline"))
    classic += name.startswith(FROM_COND)
    before, now = (_scale(guiders), classic) if guiders else (classic, _scale(here))
    if max(1.0, before) != max(1.0, now):
        yield from _other_guidance(f"guidance {before:g} and now {now:g}", [(before, now)])


def _other_guidance(changed: str, pairs: list[tuple[Any, Any]]) -> Iterator[Finding]:
    says = f"was fitted at another guidance: {changed}"
    if any(too_strong(*pair) for pair in pairs):
        cure = "calibrate at this guidance, or allow it: attach(..., allow=('guidance',))"
        yield Finding("guidance", Grade.REFUSED, f"{says}; as many plain steps are better there: {cure}")
    else:
        yield Finding("guidance", Grade.WARNED, f"{says}; it was not measured here")


def _replanned(schedule: Schedule, before: str, now: str) -> tuple[Grade, str]:
    says = f"was fitted on {before}, this run has {now}" if now.isdigit() else f"was fitted on {before}: {now}"
    if isinstance(schedule.rules[0].forecast, Matched) and schedule.kernel is None:
        grade = Grade.REFUSED if now.isdigit() else Grade.WARNED
        return grade, f"{says}; it carries no kernel and cannot be planned anew"
    return Grade.REPLANNED, f"{says}: planned anew, evidence extrapolated"


def _call(schedule: Schedule, pipe: Any, call: Mapping[str, Any]) -> Iterator[Finding]:
    made = schedule.made.get("call")
    if made is None:
        return
    default = defaults_of(pipe)
    by_prompt = {name for name in schedule.made.get("prompt_arguments", ()) if name not in made}  # of each its own
    known = {n: default.get(n) for n in (*GUIDANCE, *SIZE) if (n in default or n in made) and n not in by_prompt}
    crossed = bool(schedule.made.get("guiders")) != bool(find_guiders(pipe))
    if crossed:
        yield from _crossed(schedule, pipe, call)
    for what, names in (("guidance", () if crossed else GUIDANCE), ("size", SIZE)):
        own = [name for name in names if name in known and has_effect(name, pipe, default)]
        pairs = {name: (made.get(name, known[name]), call.get(name, known[name])) for name in own}
        changed = [f"{name} {a} and now {b}" for name, (a, b) in pairs.items() if a != b]
        if not changed:
            continue
        says = f"was fitted at another {what}: {', '.join(changed)}"
        scheduler = next(iter(find_schedulers(pipe).values()))
        far = [name for name, pair in pairs.items() if too_strong(*pair)]
        if what == "guidance" and far and isinstance(schedule.rules[0].forecast, Matched):
            cure = (
                f"calibrate at this guidance, or allow it: attach(..., allow=('guidance',)), {far[0]} up to "
                f"{FARTHEST * max(1.0, float(pairs[far[0]][0] or 0)):g}"
            )
            yield Finding(what, Grade.REFUSED, f"{says}; as many plain steps may well be better there: {cure}")
        elif what == "size" and scheduler.config.get("use_dynamic_shifting"):
            yield Finding(what, *_replanned(schedule, f"another {what}, which sets the steps", ", ".join(changed)))
        else:
            yield Finding(what, Grade.WARNED, f"{says}; it was not measured here")
    yield from _others(schedule, made, call, default)


def has_effect(name: str, pipe: Any, default: Mapping[str, Any]) -> bool:
    """Whether a guidance changes outputs: without an input for it, a denoiser as Flux has it does not see it."""
    embedded = any(config_of(plain_module(part)).get("guidance_embeds") for part in denoisers_of(pipe))
    return name != "guidance_scale" or embedded or "true_cfg_scale" not in default


def guidance_of(pipe: Any, arguments: Mapping[str, Any]) -> float:
    """Returns the scale of guidance of a call, or of the guiders; 1 for none. A distilled scale counts as one."""
    default = defaults_of(pipe)
    given = {name: arguments.get(name, default.get(name)) for name in GUIDANCE}
    if "true_cfg_scale" in default and not any(
        arguments.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds")
    ):
        given.pop("true_cfg_scale")
    scales = [
        float(value)
        for name, value in given.items()
        if isinstance(value, (int, float)) and has_effect(name, pipe, default)
    ]
    return max([1.0, *scales, _scale(guiders_of(pipe))])


def _others(
    schedule: Schedule, made: Mapping[str, Any], call: Mapping[str, Any], default: Mapping[str, Any]
) -> Iterator[Finding]:
    """Yields plain settings of the call that differ from those of the calibration: eta, guidance_rescale, ..."""
    by_prompt = set(schedule.made.get("prompt_arguments", ()))
    changed = []
    for name in sorted(call.keys() | made.keys()):
        if name in (*GUIDANCE, *SIZE) or name in CONTENT or name in by_prompt or "prompt" in name:
            continue
        before, now = made.get(name, default.get(name)), call.get(name, default.get(name))
        if _is_setting(now) and _is_setting(before) and plain_value(before) != plain_value(now):
            changed.append(f"{name} {before} and now {now}")
    if changed:
        yield Finding("arguments", Grade.WARNED, f"was fitted with {', '.join(changed)}; it was not measured here")
    now, missing = set(_contents(call)), {name for name in by_prompt if call.get(name, default.get(name)) is None}
    before = {*_contents(made), *map(_stem, missing), *(now & set(map(_stem, by_prompt)))} - {""}
    for names, word, here in ((now - before, "without", "has"), (before - now, "with", "has not")):
        if names:
            says = f"was fitted {word} {', '.join(sorted(names))}, which this call {here}; it was not measured here"
            yield Finding("content", Grade.WARNED, says)


def _contents(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names of what is given and is no setting: a reference image makes another run of a pipeline."""
    for name, value in arguments.items():
        if value is not None and not _is_setting(value) and (stem := _stem(name)):
            yield stem


def _stem(name: str) -> str:
    """Returns the name of a content, the same for its embeddings; "" of what every call may have."""
    every = name in SET_HERE | CONTENT or name in (*GUIDANCE, *SIZE) or "prompt" in name or "callback" in name
    return "" if every else name.removesuffix("_embeds").removesuffix("_latents")


def plain_value(value: Any) -> Any:
    """Returns a setting as a schedule's JSON gives it back."""
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _is_setting(value: Any) -> bool:
    """Whether a value is a plain setting, and not content such as tensors, images and lists of them."""
    if isinstance(value, Mapping):
        return all(map(_is_setting, value.values()))
    if isinstance(value, (list, tuple)):
        return all(one is None or isinstance(one, (bool, int, float)) for one in value)
    if isinstance(value, str):
        return " " not in value  # a text (lyrics, say) is content
    return value is None or isinstance(value, (bool, int, float, torch.dtype, torch.device))
