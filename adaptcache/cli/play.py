"""`adaptcache play`"""

import time
import webbrowser
from typing import Annotated

from typer import Option

from . import options as opt
from .files import find_model, load_pipeline, load_schedule, open_cache
from .screen import complain, out


def play(
    model: opt.FittedModel = None,
    schedule: Annotated[
        list[str] | None,
        Option("--schedule", "-s", help="Schedules to choose from; may be repeated. \\[default: fits them as needed]"),
    ] = None,
    steps: opt.Steps = None,
    settings: opt.Set = None,
    prompts: opt.Prompts = None,
    device: opt.Device = None,
    port: Annotated[
        int | None, Option(help="Where it listens. \\[default: 7860, or the next free]", min=1, max=65535)
    ] = None,
    show: opt.Open = False,
) -> None:
    """Open a page to play with: full run, schedule and as many plain steps side by side, with a slider over calls.

    It listens on this machine alone, until Ctrl-C. Needs the extra:
    pip install 'adaptcache-diffusers\\[play]'

    \b
    Examples:
      adaptcache play --open                        # the demo model
      adaptcache play --model flux -s schedules/flux-28-2.8x.json
    """
    from ..engines import make_setup
    from ..presets import read_prompts
    from ..report.play import Player, build_page, check_gradio, launch

    check_gradio()
    schedules = [load_schedule(source) for source in schedule or []]
    preset = find_model(model, schedules).called_with(settings or [])
    known = read_prompts(prompts or preset.prompts)
    pipe = load_pipeline(preset, device)
    options = {"pipe_kwargs": preset.call, "batch_size": preset.batch_size, "cache": open_cache(), "progress": False}
    setup = make_setup(pipe, preset.steps if steps is None else steps, options)
    page = build_page(Player(setup, known.calibration[:16], schedules, pipe), preset.name, known.held_out[0])
    address = launch(page, port)
    out.print(f"{preset.name} plays at {address} until Ctrl-C")
    if show and not webbrowser.open(address):
        complain(f"no browser was found: open {address} in one")
    try:
        while True:
            time.sleep(1)
    finally:
        page.close(verbose=False)
