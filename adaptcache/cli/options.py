"""The options that several verbs have: the same words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ..limits import STEPS

DEMO = "emoji-flux"  # what is run where no model is named


def complete_models(begun: str) -> list[str]:
    """Returns the presets that a shell may complete a word to."""
    from ..presets import names

    return [name for name in names() if name.startswith(begun)]


def complete_prompts(begun: str) -> list[str]:
    """Returns the embedded prompt files that a shell may complete a word to."""
    from ..presets import calibration_folder

    names = sorted(path.stem for path in calibration_folder().glob("prompts/*.txt"))
    return [name for name in names if name.startswith(begun)]


def complete_methods(begun: str) -> list[str]:
    """Returns the published methods that a shell may complete a word to."""
    from ..schedule.methods import METHODS

    return [name for name in METHODS if name.startswith(begun)]


Model = Annotated[
    str,
    Option("--model", "-m", help="A preset, a preset file, a folder or a hub id.", autocompletion=complete_models),
]
FittedModel = Annotated[
    str | None,
    Option(
        "--model",
        "-m",
        help="A preset, a preset file, a folder or a hub id. \\[default: the schedule's]",
        autocompletion=complete_models,
    ),
]
Steps = Annotated[int | None, Option(help="Scheduler steps. \\[default: the preset's]", min=1, max=STEPS)]
Scheduler = Annotated[
    str | None,
    Option(help="Another sampler: a scheduler class of diffusers. \\[default: the pipeline's]"),
]
Set = Annotated[
    list[str] | None,
    Option("--set", help="An argument of the pipeline's call, say height=768; may be repeated."),
]
Prompts = Annotated[
    str | None, Option(help="A prompt file, or the name of an embedded one.", autocompletion=complete_prompts)
]
PublishedMethod = Annotated[
    str | None,
    Option(
        "--method",
        help="Fit a published method instead: `adaptcache methods` lists them.",
        autocompletion=complete_methods,
    ),
]
Seed = Annotated[int, Option(help="Noise of the first prompt.")]
BatchSize = Annotated[int | None, Option(help="Prompts in one run. \\[default: the preset's]", min=1)]
Device = Annotated[str | None, Option(help="cuda, mps, xpu, cpu. \\[default: the accelerator there is]")]
Name = Annotated[str | None, Option(help="What the schedule is called.")]
Out = Annotated[Path | None, Option("--out", "-o", help="\\[default: schedules/NAME.json]")]
Offload = Annotated[
    str, Option(help="Where weights wait: none (on the device), model or group (on the CPU; group needs least).")
]
Dtype = Annotated[str | None, Option(help="float32, float16 or bfloat16. \\[default: the preset's]")]
Compile = Annotated[bool, Option("--compile", help="Compile the denoiser: its repeated blocks, where it has some.")]
Lora = Annotated[
    list[str] | None,
    Option("--lora", help="A LoRA: a file, a folder or user/repo, perhaps with @SCALE; may be repeated."),
]
Json = Annotated[bool, Option("--json", help="Print JSON.")]
