"""The options that several verbs have: the same words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ..limits import STEPS

Model = Annotated[str, Option("--model", "-m", help="A preset, a preset file, a folder or a hub id.")]
Steps = Annotated[int | None, Option(help="Scheduler steps. \\[default: the preset's]", min=1, max=STEPS)]
Scheduler = Annotated[
    str | None,
    Option(help="Another sampler: a scheduler class of diffusers. \\[default: the pipeline's]"),
]
Set = Annotated[
    list[str] | None,
    Option("--set", help="An argument of the pipeline's call, say height=768; may be repeated."),
]
Prompts = Annotated[str | None, Option(help="A prompt file, or the name of an embedded one.")]
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
