"""`adaptcache generate`"""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from . import options as opt
from .files import find_model, load_pipeline, load_schedule, wrote
from .screen import counted, out, print_json, progress


def generate(
    prompt: Annotated[str, Option("--prompt", "-p", help="What to generate.")],
    model: opt.FittedModel = None,
    schedule: Annotated[
        str | None, Option("--schedule", "-s", help="A file, a folder or user/repo; none runs in full.")
    ] = None,
    speed: Annotated[
        float | None, Option(help="Without a schedule: this many times fewer calls, from theory.", min=1)
    ] = None,
    seed: Annotated[int, opt.run(help="The noise.")] = 0,
    steps: opt.Steps = None,
    settings: opt.Set = None,
    compare: Annotated[bool, Option(help="Also run in full and with as many plain steps; write all three.")] = False,
    device: opt.Device = None,
    offload: opt.Offload = "none",
    dtype: opt.Dtype = None,
    compile: opt.Compile = False,
    lora: opt.Lora = None,
    to: Annotated[
        Path, opt.output("--out", "-o", help="The file to write: .png, .gif for clips, .wav for sound.")
    ] = Path("image.png"),
    json: opt.Json = False,
) -> None:
    """Generate from one prompt by a schedule, and say which steps were computed.

    \b
    Examples:
      adaptcache generate -p "pizza noto style blue background" --speed 2
      adaptcache generate -p "pizza noto style blue background" --compare \\
        -s schedules/emoji-flux-28-4x.json
    """
    import time
    from dataclasses import replace

    import numpy as np

    from ..engines import make_setup
    from ..engines.diffusers.attach import attach
    from ..engines.diffusers.calls import call_pipeline
    from ..engines.diffusers.engine import sampling_rate
    from ..evaluation.generate import generate as run_in_full
    from ..evaluation.metrics import psnr
    from ..files import check_image, check_writable
    from ..hub.card import format_psnr
    from ..report.picture import save_output, side_by_side
    from ..runs import PromptSet

    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the prompt {prompt!r} is not UTF-8 text: type it again in this terminal") from None
    if schedule and speed:
        raise ValueError(f"--schedule {schedule} says how fast it is: leave --speed {speed:g} out, or the schedule")
    fitted = load_schedule(schedule) if schedule else None
    preset = find_model(model, [fitted] if fitted else []).called_with(settings or [])
    fast = fitted is not None or speed is not None
    if compare and not fast:
        raise ValueError("--compare needs a --schedule or a --speed to compare with the full run")
    sound = to.suffix.lower() == ".wav"
    if sound and compare:
        raise ValueError("--compare draws a picture, of sound too; use an ending such as .png")
    said = wrote((check_writable if sound else check_image)(to))
    pipe = load_pipeline(preset, device, offload=offload, dtype=dtype, compile=compile, loras=lora or ())
    rate = sampling_rate(pipe)
    if sound and rate is None:
        raise ValueError(f"{preset.name} makes no sound; use an ending such as .png instead of .wav")
    pipe.set_progress_bar_config(disable=True)
    options = {"seed": seed, "progress": False, "pipe_kwargs": preset.call}
    setup = make_setup(pipe, preset.steps if steps is None else steps, options)
    one = PromptSet((prompt,))
    numbers: dict[str, Any] = {"out": str(to)}
    with progress(kept="nothing was written") as report:
        if fast:
            with attach(pipe, fitted, speed=speed) as handle:
                report("generating", 0, 1)
                since = time.perf_counter()
                output = np.asarray(call_pipeline(pipe, setup.call, one, "np")[0])[0]
                seconds = time.perf_counter() - since
            done = handle.report()
            numbers |= {"calls": len(done.computed), "seconds": seconds, "evidence": done.evidence}
            report("generating", 1, 1)
        setup = replace(setup, progress=report)
        if compare or not fast:
            full = run_in_full(setup, one, stage="in full")
        if compare:
            call = replace(setup.call, num_inference_steps=max(1, numbers["calls"]))
            plain = run_in_full(replace(setup, call=call), one, stage="as many plain steps")
    if not fast:
        output = full.images[0]
        numbers |= {"calls": round(full.calls), "seconds": full.total}
    if compare:
        worth, without = (psnr(image, full.images[0]) for image in (output, plain.images[0]))
        numbers |= {"psnr": worth, "speed": full.total / seconds, "plain_steps_psnr": without}
        columns = {f"full run, {full.steps} steps": full.images, f"{plain.steps} steps": plain.images}
        side_by_side([prompt], columns | {f"adaptcache, {numbers['calls']} calls": [output]}, to)
    else:
        save_output(output, to, rate)
    if json:
        print_json(numbers)
        return
    if fast:
        out.print(str(done))
    if compare:
        out.print(f"{format_psnr(worth)} against the full run, {full.total / seconds:.2f}x as fast")
        out.print(f"{format_psnr(without)} with {plain.steps} plain steps instead")
    out.print(f"{said}  ({counted(numbers['calls'], 'step')} computed, {numbers['seconds']:.2f} s)")
