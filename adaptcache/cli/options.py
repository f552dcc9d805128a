"""The options that several verbs have: the same words everywhere."""

from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from ..limits import STEPS

DEMO = "emoji-flux"  # what is run where no model is named
FIT_ON, EVAL_ON, EVERY = 16, 32, 1_000_000  # prompts
MAX_FAILURE_RATE, CONFIDENCE = 0.05, 0.95


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


run = partial(Option, rich_help_panel="The model and its runs")
prompts = partial(Option, rich_help_panel="Prompts")
quality = partial(Option, rich_help_panel="A quality to be reached")
output = partial(Option, rich_help_panel="What is written")

MODEL = "A preset, a preset file, a folder or a hub id."
Model = Annotated[str, run("--model", "-m", help=MODEL, autocompletion=complete_models)]
FittedModel = Annotated[
    str | None, run("--model", "-m", help=f"{MODEL} \\[default: the schedule's]", autocompletion=complete_models)
]
Steps = Annotated[int | None, run(help="Scheduler steps. \\[default: the preset's]", min=1, max=STEPS)]
Scheduler = Annotated[
    str | None, run(help="Another sampler: a scheduler class of diffusers. \\[default: the pipeline's]")
]
Set = Annotated[
    list[str] | None, run("--set", help="An argument of the pipeline's call, say height=768; may be repeated.")
]
Seed = Annotated[int, run(help="Noise of the first prompt.")]
BatchSize = Annotated[int | None, run(help="Prompts in one run. \\[default: the preset's]", min=1)]
Device = Annotated[str | None, run(help="cuda, mps, xpu or cpu. \\[default: the accelerator there is]")]
Offload = Annotated[
    str, run(help="Where weights wait: none (on the device), model or group (on the CPU; group needs least).")
]
Dtype = Annotated[str | None, run(help="float32, float16 or bfloat16. \\[default: the preset's]")]
Compile = Annotated[bool, run("--compile", help="Compile the denoiser: its repeated blocks, where it has some.")]
Lora = Annotated[
    list[str] | None,
    run("--lora", help="A LoRA: a file, a folder or user/repo, perhaps with @SCALE; may be repeated."),
]

Prompts = Annotated[
    str | None, prompts(help="A prompt file, or the name of an embedded one.", autocompletion=complete_prompts)
]
FitOn = Annotated[int, prompts(help="Calibration prompts at most.", min=1)]
EvalOn = Annotated[int, prompts(help="Held-out prompts at most.", min=1)]

MaxFailureRate = Annotated[float, quality(help="Share of prompts that may stay below --min-psnr.", min=0, max=1)]
Confidence = Annotated[float, quality(help="How sure a certificate has to be.", min=0, max=1)]

Name = Annotated[str | None, output(help="What the schedule is called.")]
Out = Annotated[Path | None, output("--out", "-o", help="Where it goes. \\[default: schedules/NAME.json]")]
Rows = Annotated[int, output(help="Rows of the picture.", min=1)]
Open = Annotated[bool, Option("--open", help="Open it in the browser.")]
Json = Annotated[bool, output("--json", help="Print JSON.")]
