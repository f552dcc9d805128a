"""A local page to play with: a prompt in full, by a schedule, and with as many plain steps, beside each other.

Needs `adaptcache-diffusers[play]`.
"""

import html
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..calibration.calibrate import calibrate
from ..engines.diffusers.engine import sampling_rate
from ..evaluation.generate import Generation, generate
from ..evaluation.metrics import psnr
from ..hub.card import format_psnr
from ..runs import PromptSet, Setup
from ..schedule.schedule import Schedule
from .page import embed_output, embed_sound

STYLE = """
.played { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.played figure { margin: 0; } .played img { width: 100%; image-rendering: pixelated; border-radius: 4px; }
.played audio { width: 100%; } .played b { display: block; } .played span { opacity: .75; }
"""


@dataclass
class Player:
    """Runs single prompts in three ways, and keeps what it fitted and the last full run."""

    setup: Setup
    prompts: Sequence[Any]  # what schedules are fitted on that were not given
    # those that were given; none fits one for each number of calls when it is first asked for
    schedules: Sequence[Schedule] = ()
    pipe: Any = None  # the pipeline, for what it says of its sounds
    fitted: dict[int, Schedule] = field(default_factory=dict)
    full: tuple[tuple[str, int], Generation] | None = None

    @property
    def choices(self) -> list[int]:
        """The numbers of calls that there is a schedule for, or that one can be fitted for."""
        steps = self.setup.call.num_inference_steps
        return sorted({len(one.steps()) for one in self.schedules}) or list(range(2, steps))

    def schedule(self, calls: int) -> Schedule:
        """Returns the schedule for a number of calls: of those given the nearest, or one that is fitted now."""
        if self.schedules:
            return min(self.schedules, key=lambda one: abs(len(one.steps()) - calls))
        if calls not in self.fitted:
            setup, steps = self.setup, self.setup.call.num_inference_steps
            self.fitted[calls] = calibrate(
                setup.engine, self.prompts, steps, budget=calls / steps, cache=setup.cache, progress=False,
                batch_size=setup.batch_size, pipe_kwargs=setup.call.pipe_kwargs,
            )  # fmt: skip
        return self.fitted[calls]

    def play(self, prompt: str, seed: int, calls: int) -> list[tuple[str, Generation]]:
        """Returns what a prompt gives in full, by a schedule, and with as many plain steps, each with its name."""
        one = PromptSet((prompt,))
        setup = replace(self.setup, batch_size=1, call=replace(self.setup.call, seed=seed))
        schedule = self.schedule(calls)
        if self.full is None or self.full[0] != (prompt, seed):
            if self.full is None:
                generate(setup, one)  # the first run is slow
            self.full = ((prompt, seed), generate(setup, one))
        ours = generate(setup, one, schedule)
        steps = max(1, round(ours.calls))
        plain = generate(replace(setup, call=replace(setup.call, num_inference_steps=steps)), one)
        full = self.full[1]
        return [
            (f"full run, {full.steps} steps", full), (f"adaptcache, {ours.calls:g} calls", ours),
            (f"{plain.steps} plain steps", plain),
        ]  # fmt: skip

    def show(self, prompt: str, seed: float, calls: float) -> str:
        """Returns what `play` gives as an element of a page, or what is wrong as text."""
        try:
            made = self.play(prompt, int(seed), int(calls))
        except (ValueError, RuntimeError, TypeError) as error:
            return f"<p>{html.escape(str(error))}</p>"
        truth, rate = made[0][1].images[0], sampling_rate(self.pipe) if self.pipe is not None else None
        figures = [_figure(name, one, truth, made[0][1].total, rate) for name, one in made]
        return f"<div class='played'>{''.join(figures)}</div>"


def _figure(name: str, made: Generation, truth: np.ndarray, full: float, rate: int | None) -> str:
    output = made.images[0]
    says = f"{made.total:.2f} s"
    if output is not truth:
        says += f", {full / made.total:.2f}x as fast, {format_psnr(psnr(output, truth))}"
    sound = embed_sound(output, rate)
    player = f"<audio controls src='{sound}'></audio>" if sound else ""
    return (
        f"<figure><img alt='{html.escape(name)}' src='{embed_output(output)}'>{player}"
        f"<figcaption><b>{html.escape(name)}</b><span>{says}</span></figcaption></figure>"
    )


def check_gradio() -> None:
    """Raises ImportError where there can be no page: before a pipeline is loaded."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the page needs gradio: pip install 'adaptcache-diffusers[play]'")


def build_page(player: Player, title: str, prompt: str) -> Any:
    """Returns the page, a `gradio.Blocks`."""
    import gradio

    choices, steps = player.choices, player.setup.call.num_inference_steps
    about = (
        "given schedules" if player.schedules else "a schedule for each number of calls, fitted when asked for first"
    )
    with gradio.Blocks(title=f"adaptcache: {title}", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# {title}\nThe same noise {steps} steps in full, by adaptcache ({about}), and in plain steps."
        )
        with gradio.Row():
            text = gradio.Textbox(prompt, label="prompt", scale=4, min_width=320)
            seed = gradio.Number(0, label="seed", precision=0, minimum=0, scale=1)
        start = min(choices, key=lambda calls: abs(calls - steps / 4))
        calls = gradio.Slider(choices[0], choices[-1], start, step=1, label=f"calls of the denoiser, of {steps}")
        button = gradio.Button("Generate", variant="primary")
        shown = gradio.HTML()
        inputs = [text, seed, calls]
        for event in (button.click, text.submit, calls.release, page.load):
            event(player.show, inputs, shown, show_progress="minimal")
    return page


def launch(page: Any, port: int | None = None) -> str:
    """Serves the page on this machine alone, in threads; returns its address."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # nothing from elsewhere
    _, address, _ = page.launch(
        server_name="127.0.0.1", server_port=port, share=False, quiet=True, prevent_thread_lock=True, theme=theme,
        css=STYLE, footer_links=[],
    )  # fmt: skip
    return str(address)
