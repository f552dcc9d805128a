"""The nodes: each takes what its widgets give, and leaves the work to `adaptcache.engines.comfyui`."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import folder_paths
import numpy as np
import torch

from adaptcache.calibration.calibrate import calibrate
from adaptcache.engines.comfyui.apply import Applied, applied_to
from adaptcache.engines.comfyui.engine import ComfyEngine, Sampling
from adaptcache.evaluation.metrics import psnr
from adaptcache.limits import check_name
from adaptcache.runs import Job, PipelineCall, PromptSet
from adaptcache.schedule.schedule import Schedule

from .demo import DemoModel

FOLDER = "adaptcache"  # below `models`
NONE = "(none yet: calibrate, or put one into models/adaptcache)"

folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
folder_paths.folder_names_and_paths[FOLDER] = (folder_paths.folder_names_and_paths[FOLDER][0], {".json"})


def widget(kind: Any, tip: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Returns an input of a node."""
    return kind, {**options, "tooltip": tip}


RUN = {  # what a KSampler has
    "steps": widget("INT", "Steps of a full run, as in the KSampler to be made faster.", default=28, min=2, max=512),
    "sampler_name": widget(comfy.samplers.KSampler.SAMPLERS, "As in that KSampler: one with a model call a step."),
    "scheduler": widget(comfy.samplers.KSampler.SCHEDULERS, "As in that KSampler."),
    "cfg": widget("FLOAT", "As in that KSampler.", default=1.0, min=0.0, max=100.0, step=0.1),
    "denoise": widget("FLOAT", "Below 1: image to image.", default=1.0, min=0.01, max=1.0, step=0.01),
    "seed": widget("INT", "The noise of prompt number k is drawn with seed + k.", default=0, min=0, max=2**63 - 1),
}
SPEED = widget("FLOAT", "Steps over computed steps: at 2, half of them.", default=2.0, min=1.0, max=16.0, step=0.1)


class LoadSchedule:
    """Reads a schedule from `models/adaptcache`."""

    DESCRIPTION = "Loads a schedule: a small JSON file that says at which steps the model is called."
    CATEGORY, FUNCTION = "adaptcache", "load"
    RETURN_TYPES, RETURN_NAMES = ("ADAPTCACHE_SCHEDULE", "STRING"), ("schedule", "about")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = folder_paths.get_filename_list(FOLDER) or [NONE]
        return {"required": {"name": widget(names, "A file of models/adaptcache.")}}

    @classmethod
    def IS_CHANGED(cls, name: str) -> float:
        path = folder_paths.get_full_path(FOLDER, name)
        return os.path.getmtime(path) if path else float("nan")

    def load(self, name: str) -> tuple[Schedule, str]:
        schedule = Schedule.load(folder_paths.get_full_path_or_raise(FOLDER, name))
        return schedule, describe(schedule)


class ApplySchedule:
    """Puts a schedule on a MODEL."""

    DESCRIPTION = "Makes a MODEL faster by a schedule. Connect it last, after LoRA and shift."
    CATEGORY, FUNCTION = "adaptcache", "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        gear = "Which of the schedule's plans, from the fastest (0); -1 leaves it to the schedule."
        strict = (
            "An error instead of a warning where weights, sampler, steps, cfg or size are not the calibrated ones."
        )
        return {
            "required": {
                "model": widget("MODEL", "It stays as it is; the output is a clone of it."),
                "schedule": widget("ADAPTCACHE_SCHEDULE", "From Load Schedule or Calibrate Schedule."),
                "gear": widget("INT", gear, default=-1, min=-1, max=15),
                "strict": widget("BOOLEAN", strict, default=False),
            }
        }

    def apply(self, model: Any, schedule: Schedule, gear: int, strict: bool) -> tuple[Any]:
        return (Applied(model, schedule, strict=strict, gear=None if gear < 0 else gear).model,)


class Instant:
    """Puts a schedule from theory on a MODEL."""

    DESCRIPTION = "Makes a MODEL faster without calibration: theory gives the schedule, for the steps of each run."
    CATEGORY, FUNCTION = "adaptcache", "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": widget("MODEL", "It stays as it is."), "speed": SPEED}}

    def apply(self, model: Any, speed: float) -> tuple[Any]:
        return (Applied(model, speed=speed).model,)


class Prompts:
    """Makes a list of texts, so that CLIP Text Encode makes a list of conditionings."""

    DESCRIPTION = "One prompt a line, for Calibrate Schedule: connect it to the text of CLIP Text Encode."
    CATEGORY, FUNCTION = "adaptcache", "split"
    RETURN_TYPES, OUTPUT_IS_LIST = ("STRING",), (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "8 to 16 prompts of the kind you are going to use, one a line, and some more to measure on."
        return {"required": {"prompts": widget("STRING", tip, multiline=True)}}

    def split(self, prompts: str) -> tuple[list[str]]:
        rows = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not rows:
            raise ValueError("there are no prompts: write one a line")
        return (rows,)


class Calibrate:
    """Fits a schedule to a MODEL and saves it in `models/adaptcache`."""

    DESCRIPTION = (
        "Runs the MODEL on your prompts and fits a schedule: when to call it, and what to use instead. Saves it in "
        "models/adaptcache."
    )
    CATEGORY, FUNCTION, OUTPUT_NODE, INPUT_IS_LIST = "adaptcache", "calibrate", True, True
    RETURN_TYPES, RETURN_NAMES = ("ADAPTCACHE_SCHEDULE", "STRING"), ("schedule", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        held_out = "The last so many prompts are not fitted on: the quality is measured on them. Needs a VAE."
        return {
            "required": {
                "model": widget("MODEL", "With the LoRA and the shift that you are going to use."),
                "positive": widget("CONDITIONING", "A list: Prompts, then CLIP Text Encode."),
                "negative": widget("CONDITIONING", "One for all."),
                "latent_image": widget(
                    "LATENT", "An empty one of the size you are going to use, or an encoded image."
                ),
                **RUN,
                "speed": SPEED,
                "held_out": widget("INT", held_out, default=4, min=0, max=256),
                "name": widget("STRING", "Of the file; empty makes one from model, steps and speed.", default=""),
            },
            "optional": {"vae": widget("VAE", "Decodes the held-out prompts, whose images are compared.")},
        }

    def calibrate(self, **given: list[Any]) -> dict[str, Any]:
        rows = [{"positive": one} for one in given.pop("positive")]
        one: dict[str, Any] = {name: values[0] for name, values in given.items()}
        few = one["held_out"] if one.get("vae") is not None else 0
        if one["held_out"] and one.get("vae") is None:
            raise ValueError("held-out prompts are measured on images: connect a VAE, or set held_out to 0")
        if len(rows) <= few:
            raise ValueError(f"{len(rows)} prompts, {few} of them held out, leave none to calibrate on: give more")
        engine = engine_of(one)
        schedule: Schedule = calibrate(
            engine, rows[: len(rows) - few], one["steps"], speed=one["speed"], eval_prompts=rows[len(rows) - few :],
            seed=one["seed"], name=one["name"] or None, progress=progress(),
        )  # fmt: skip
        path = os.path.join(folder_paths.get_folder_paths(FOLDER)[0], f"{check_name(schedule.name)}.json")
        text = f"{describe(schedule)}\nsaved as {os.path.basename(path)} in models/{FOLDER}"
        schedule.save(path)
        return {"ui": {"text": [text]}, "result": (schedule, text)}


class Compare:
    """Runs a prompt in full, by a schedule, and with as many plain steps."""

    DESCRIPTION = (
        "Three images with the same noise: all steps, by the schedule, and as many plain steps as the schedule "
        "computes; with decibels."
    )
    CATEGORY, FUNCTION, OUTPUT_NODE = "adaptcache", "compare", True
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING"), ("images", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": widget("MODEL", "Without a schedule on it."),
                "schedule": widget("ADAPTCACHE_SCHEDULE", "From Load Schedule or Calibrate Schedule."),
                "vae": widget("VAE", "Decodes the images."),
                "positive": widget("CONDITIONING", "As in the KSampler."),
                "negative": widget("CONDITIONING", "As in the KSampler."),
                "latent_image": widget("LATENT", "As in the KSampler."),
                **RUN,
            }
        }

    def compare(self, **one: Any) -> dict[str, Any]:
        engine, schedule, show = engine_of(one), one["schedule"], progress()
        rows = PromptSet.of([{"positive": one["positive"]}])
        engine.preflight(PipelineCall(one["steps"]), rows)
        applied = Applied(one["model"], schedule)

        def run(number: int, model: Any, steps: int) -> np.ndarray:
            show("comparing", number, 3)
            return engine.images(engine.sample(model, Job(PipelineCall(steps, seed=one["seed"]), rows)))[0]

        full, ours = run(0, one["model"], one["steps"]), run(1, applied.model, one["steps"])
        report = applied.report()
        few = max(1, len(report.computed))
        plain = run(2, one["model"], few)
        text = (
            f"{schedule.name}: {few} of {len(report.calls)} steps computed, {psnr(ours, full):.1f} dB "
            f"({report.evidence}); {few} plain steps {psnr(plain, full):.1f} dB"
        )
        frames = [image if image.ndim == 4 else image[None] for image in (full, ours, plain)]
        show("comparing", 3, 3)
        return {"ui": {"text": [text]}, "result": (torch.from_numpy(np.concatenate(frames)), text)}


class Report:
    """Says what the last run of a MODEL with a schedule did."""

    DESCRIPTION = "What the last run did: which steps were computed, and whether it ran as it was measured."
    CATEGORY, FUNCTION, OUTPUT_NODE = "adaptcache", "report", True
    RETURN_TYPES, RETURN_NAMES = ("STRING",), ("report",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        after = "What the KSampler gave: the report is made after it."
        model = "From Apply Schedule or Instant Schedule: the one that the KSampler has."
        return {"required": {"model": widget("MODEL", model), "after": widget("LATENT", after)}}

    def report(self, model: Any, after: Any) -> dict[str, Any]:
        if (applied := applied_to(model)) is None:
            raise ValueError("there is no schedule on this MODEL: connect the output of Apply Schedule")
        text = f"{applied.report()}\n{describe(applied.schedule)}"
        return {"ui": {"text": [text]}, "result": (text,)}


def engine_of(one: dict[str, Any]) -> ComfyEngine:
    """Returns the engine for the inputs of a node."""
    latent = one["latent_image"]
    if latent.get("noise_mask") is not None:
        raise ValueError("this LATENT has a mask: calibrate and compare on whole images")
    sampling = Sampling(
        one["negative"], latent["samples"], one["sampler_name"], one["scheduler"], one["cfg"], one["denoise"]
    )
    vae = one.get("vae")
    cancelled = comfy.model_management.throw_exception_if_processing_interrupted
    return ComfyEngine(one["model"], sampling, None if vae is None else partial(decoded, vae), cancelled)


def decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Returns images, or the frames of clips one after the other, with shape (B, H, W, C)."""
    images = vae.decode(latents)
    return images.reshape(-1, *images.shape[-3:])


def progress() -> Any:
    """Returns what shows the progress of a node, and ends it where the user has cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def show(stage: str, done: int, of: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, max(of, 1))

    return show


def describe(schedule: Schedule) -> str:
    """Returns a schedule in some lines: its plans and its evidence."""
    rule, times = schedule.rules[0], schedule.grid.times
    lines = [f"{schedule.name}: {rule.policy.type}, {rule.forecast.type}, at the site {rule.site}"]
    for plan in schedule.plans:
        strip = "".join("█" if step in plan else "·" for step in range(len(times)))
        lines.append(f"{strip}  {len(plan)} of {len(times)} steps computed")
    if (seen := schedule.evidence) is not None:
        mean, low = seen.psnr["mean"], seen.psnr["p05"]
        lines.append(f"{mean:.1f} dB on {seen.n} held-out prompts (5th percentile {low:.1f})")
    else:
        lines.append("no evidence: its quality was not measured")
    return "\n".join(lines)


NODES = {
    "AdaptcacheLoadSchedule": (LoadSchedule, "Load Schedule (adaptcache)"),
    "AdaptcacheApplySchedule": (ApplySchedule, "Apply Schedule (adaptcache)"),
    "AdaptcacheInstant": (Instant, "Instant Schedule (adaptcache)"),
    "AdaptcachePrompts": (Prompts, "Prompts (adaptcache)"),
    "AdaptcacheCalibrate": (Calibrate, "Calibrate Schedule (adaptcache)"),
    "AdaptcacheCompare": (Compare, "Compare Schedule (adaptcache)"),
    "AdaptcacheDemoModel": (DemoModel, "Demo Model (adaptcache)"),
    "AdaptcacheReport": (Report, "Schedule Report (adaptcache)"),
}
NODE_CLASS_MAPPINGS = {name: kind for name, (kind, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
