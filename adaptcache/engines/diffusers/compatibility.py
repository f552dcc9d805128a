"""How well a schedule fits a pipeline: every difference from what it was fitted on, with a grade.

The file is longer than ours are: all gradings stand here, so that what is refused is seen in one place.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ...distributed import sharded
from ...files import dump_json
from ...forecasts.matched import Matched
from ...schedule.findings import Finding, Grade
from ...schedule.schedule import Schedule
from .identity import checkpoint_of, fingerprint, provenance
from .watch import denoisers_of

__all__ = ["graded", "graded_call", "other_cache"]

GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "image_guidance_scale")
SIZE = ("height", "width", "num_frames", "audio_end_in_s")
GRID = {  # what of a scheduler's configuration moves its steps and nothing else
    "base_image_seq_len", "base_shift", "beta_end", "beta_schedule", "beta_start", "flow_shift",
    "invert_sigmas", "max_image_seq_len", "max_shift", "rescale_betas_zero_snr", "shift", "shift_terminal",
    "sigma_max", "sigma_min", "steps_offset", "time_shift_type", "timestep_spacing", "use_beta_sigmas",
    "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas",
}  # fmt: skip


def graded(
    schedule: Schedule, pipe: Any, call: Mapping[str, Any] | None = None, steps: int | None = None
) -> list[Finding]:
    """Compares what a schedule was fitted on with a pipeline. Changes nothing.

    What a schedule does not say is not compared: those of other sources may know little of themselves.

    Arguments:
        schedule: The schedule.
        pipe: A diffusers pipeline.
        call: The arguments it is going to be called with; None leaves guidance and size out.
        steps: The number of steps of the call; None leaves them out.

    Returns:
        The differences, worst first; none where all is as it was.
    """
    found = [*_denoiser(schedule, pipe), *_pipeline(schedule, pipe), *_scheduler(schedule, pipe)]
    found += _other_cache(pipe)
    if call is not None:
        found += _call(schedule, pipe, call)
    if steps is not None and len(schedule.grid.times) not in (0, steps):
        found.append(Finding("steps", *_anew(schedule, f"{len(schedule.grid.times)} steps", f"{steps}")))
    return sorted(found, key=lambda finding: -finding.grade)


def graded_call(schedule: Schedule, pipe: Any, arguments: Mapping[str, Any]) -> list[Finding]:
    """Returns what in one call of an attached pipeline nobody measured; steps are looked at when it runs.

    Arguments:
        schedule: The schedule.
        pipe: The pipeline.
        arguments: What it is called with, by name; sizes that are left to the pipeline are not compared.
    """
    made = schedule.made.get("call") or {}
    chosen = {name for name in SIZE if arguments.get(name) is not None and made.get(name) is not None}
    given = {name: value for name, value in arguments.items() if name not in SIZE or name in chosen}
    sizes = {name: made[name] for name in SIZE if name in made and name not in chosen}
    found = [*_other_cache(pipe), *_call(schedule, pipe, {**given, **sizes})]
    return [finding for finding in found if finding.grade >= Grade.WARNED]


def other_cache(pipe: Any) -> str:
    """Returns the name of a cache of diffusers or cache-dit that is on in a denoiser; "" where none is."""
    for denoiser in denoisers_of(pipe):
        module = getattr(denoiser, "_orig_mod", denoiser)
        if (config := getattr(module, "_cache_config", None)) is not None:
            return type(config).__name__.removesuffix("Config")
        if getattr(module, "_is_cached", False):
            return "cache-dit"
    return ""


def _other_cache(pipe: Any) -> Iterator[Finding]:
    if name := other_cache(pipe):
        says = (
            f"would run on top of {name}, which skips on its own at the steps that are computed and does not "
            "see the others: nobody measured that; turn one of the two off"
        )
        yield Finding("cache", Grade.WARNED, says)


def _denoiser(schedule: Schedule, pipe: Any) -> Iterator[Finding]:
    live, fitted = fingerprint(pipe), schedule.denoiser
    known = fitted.checkpoint or "unknown checkpoint"
    if fitted.class_name not in ("", live.class_name):
        says = f"was fitted on a {fitted.class_name}, this pipeline has a {live.class_name}"
        yield Finding("denoiser", Grade.REFUSED, f"{says}; calibrate for this one")
        return
    lost = "its evidence does not hold here; calibrate again"
    if fitted.config_hash not in ("", live.config_hash):
        says = f"was fitted on another configuration of {fitted.class_name} ({known}): {lost}"
        yield Finding("configuration", Grade.WARNED, says)
    elif fitted.weights_hash not in ("", live.weights_hash):
        yield _weights(schedule, pipe, f"was fitted on other weights of {fitted.class_name} ({known})", lost)


def _weights(schedule: Schedule, pipe: Any, says: str, lost: str) -> Finding:
    here, made = provenance(pipe), schedule.made
    if any(weight.is_meta or sharded(weight) for part in denoisers_of(pipe) for weight in part.parameters()):
        return Finding("weights", Grade.FINE, "cannot be compared with weights that are offloaded or sharded")
    loras = made.get("loras", [])
    if here["loras"] != loras:
        names = " and ".join(", ".join(names) or "none" for names in (loras, here["loras"]))
        return Finding("LoRA", Grade.WARNED, f"{says}: LoRAs {names}; {lost}")
    same = checkpoint_of(pipe) == schedule.denoiser.checkpoint != ""
    if same and made.get("dtype", here["dtype"]) != here["dtype"]:
        # Rounding changes every value, so that hashes of two precisions never agree.
        return Finding("weights", Grade.FINE, f"was fitted on the same checkpoint in {made['dtype']}")
    return Finding("weights", Grade.WARNED, f"{says}: {lost}")


def _pipeline(schedule: Schedule, pipe: Any) -> Iterator[Finding]:
    made, here = schedule.made, provenance(pipe)
    if made.get("pipeline", here["pipeline"]) != here["pipeline"]:
        says = f"was fitted with a {made['pipeline']}, this is a {here['pipeline']}: nobody measured it here"
        yield Finding("pipeline", Grade.WARNED, says)
    if made.get("dtype", here["dtype"]) != here["dtype"]:
        says = f"was fitted in {made['dtype']}, this is {here['dtype']}: the plan does not depend on it"
        yield Finding("dtype", Grade.FINE, says)


def _scheduler(schedule: Schedule, pipe: Any) -> Iterator[Finding]:
    fitted, here = schedule.grid.scheduler, type(pipe.scheduler).__name__
    if fitted not in ("", here):
        says = f"was fitted with {fitted}, this is {here}: nobody measured it with this one"
        yield Finding("scheduler", Grade.WARNED, says)
        return
    before, now = schedule.made.get("scheduler") or {}, provenance(pipe)["scheduler"]
    differ = sorted(
        key for key in before.keys() & now.keys() if dump_json(before[key]) != dump_json(now[key])
    )
    changes = ", ".join(f"{key} {before[key]} and now {now[key]}" for key in differ)
    if "prediction_type" in differ:
        yield Finding("scheduler", Grade.REFUSED, f"was fitted on outputs of another kind: {changes}")
    elif set(differ) - GRID:
        yield Finding("scheduler", Grade.WARNED, f"was fitted with other settings of {here}: {changes}")
    elif differ:
        yield Finding("scheduler", *_anew(schedule, f"other steps of {here}", changes))


def _anew(schedule: Schedule, before: str, now: str) -> tuple[Grade, str]:
    says = (
        f"was fitted on {before}, this run has {now}" if now.isdigit() else f"was fitted on {before}: {now}"
    )
    if isinstance(schedule.rules[0].forecast, Matched) and schedule.kernel is None:
        grade = Grade.REFUSED if now.isdigit() else Grade.WARNED
        return grade, f"{says}; it carries no kernel and cannot be planned anew"
    return Grade.REPLANNED, f"{says}: planned anew, evidence extrapolated"


def _call(schedule: Schedule, pipe: Any, call: Mapping[str, Any]) -> Iterator[Finding]:
    known = inspect.signature(pipe.__call__).parameters
    made = schedule.made.get("call")
    if made is None:
        return
    for what, names in (("guidance", GUIDANCE), ("size", SIZE)):
        default = {name: known[name].default for name in names if name in known}
        pairs = {name: (made.get(name, default[name]), call.get(name, default[name])) for name in default}
        changed = [f"{name} {a} and now {b}" for name, (a, b) in pairs.items() if a != b]
        if not changed:
            continue
        says = f"was fitted at another {what}: {', '.join(changed)}"
        if what == "size" and pipe.scheduler.config.get("use_dynamic_shifting"):
            yield Finding(what, *_anew(schedule, f"another {what}, which sets the steps", ", ".join(changed)))
        else:
            yield Finding(what, Grade.WARNED, f"{says}; nobody measured it here")
