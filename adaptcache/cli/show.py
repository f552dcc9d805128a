"""What is read and not run: `adaptcache show`, `lint`, `models` and `methods`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from ..files import locate
from . import options as opt
from .files import load_schedule, wrote
from .screen import counted, new_table, out, print_json, print_whole, printable

if TYPE_CHECKING:
    from rich.table import Table

    from ..schedule.schedule import Schedule
    from ..tuning.front import Front

COLOURS = {"error": "red", "warning": "yellow"}  # of faults
WHOLE = 160  # columns of the whole table of methods


def show(
    schedule: Annotated[str, Argument(help="A schedule: a file, a folder or user/repo; or a front.")],
    pick: Annotated[
        str | None, Option(help="Of a front: the best with at most 10 calls, or the fastest with 35dB.")
    ] = None,
    to: Annotated[Path | None, opt.output("--out", "-o", help="Where the picked schedule goes.")] = None,
    json: opt.Json = False,
) -> None:
    """Say what a schedule does, how good it is and where it came from; or what a front has to pick from.

    \b
    Examples:
      adaptcache show schedules/emoji-flux-28-4x.json
      adaptcache show emoji-flux-32-28-front.front.json --pick 10 --out ten.json
    """
    from ..tuning.front import holds_front

    picks, path = pick is not None or to is not None, locate(schedule)
    if holds_front(path):
        show_front(path, pick, to, json)
        return
    if (picks or schedule.endswith(".front.json")) and not path.exists():
        raise FileNotFoundError(f"there is no {schedule}; `adaptcache tune` writes fronts")
    if picks:
        raise ValueError(f"{schedule} is one schedule: there is nothing to pick from it")
    shown = load_schedule(schedule)
    if json:
        print_json(shown.data())
    else:
        describe(shown)


def describe(schedule: Schedule) -> None:
    """Prints a schedule for people."""
    rule, times, full = schedule.rules[0], schedule.grid.times, schedule.grid.full
    view = new_table("", "says")
    view.show_header = False
    view.add_row("schedule", Text(schedule.name, "bold"))
    fitted = f"{schedule.denoiser.class_name}  {schedule.denoiser.checkpoint}"
    view.add_row("fitted on", "no model" if schedule.from_theory else fitted)
    grid = f"{len(times)} of {schedule.grid.scheduler}"
    grid = f"{len(times)} of its own, instead of {len(full)} of {schedule.grid.scheduler}" if full else grid
    grid += f", t from {times[0]:.3f} to {times[-1]:.3f}" if times else ""
    view.add_row("steps", grid if times else "any: nothing was fitted")
    for one in schedule.rules if rule.site != "step" else ():
        view.add_row("site", f"{one.site}: {one.policy.type}, {one.forecast.type}")
    add_policy(view, schedule)
    view.add_row("forecast", ", ".join(f"{k} {v}" for k, v in rule.forecast.model_dump(exclude={"table"}).items()))
    if schedule.corrects:
        view.add_row("computed steps", "the sampler gets weighted outputs there too, after the first skipped step")
    if isinstance(search := schedule.made.get("search"), dict) and {"plans", "gain_db", "full_runs"} <= search.keys():
        cost = f"{search['plans']} plans tried, {search['full_runs']} full runs of one prompt"
        view.add_row("plan search", f"{search['gain_db']} dB over the planner's proposals: {cost}")
    add_evidence(view, schedule)
    cure = "attach(pipe, speed=...) makes one for any grid" if schedule.from_theory else "it has no kernel"
    view.add_row("other grids", "planned anew from its kernel" if schedule.kernel else f"refused: {cure}")
    plain = {key: value for key, value in schedule.made.items() if not isinstance(value, dict | list)}
    if plain:
        view.add_row("made with", ", ".join(f"{key} {value}" for key, value in plain.items()))
    if isinstance(call := schedule.made.get("call"), dict):
        view.add_row("called with", ", ".join(f"{key}={value!r}" for key, value in call.items()))
    if loras := schedule.made.get("loras"):
        view.add_row("LoRAs", str(loras))
    out.print(view)


def add_policy(view: Table, schedule: Schedule) -> None:
    """Adds when the schedule computes, and what it decides by."""
    from ..policies.gears import Gears
    from ..policies.plan import Plan

    policy, times = schedule.rules[0].policy, schedule.grid.times
    view.add_row("policy", policy.type)
    if not isinstance(policy, Plan):
        return
    for number, gear in enumerate(policy.gears):
        steps = policy.steps(times, number)
        strip = "".join("█" if i in steps else "·" for i in range(len(times)))
        name = "plan" if len(policy.gears) == 1 else f"gear {number}"
        view.add_row(name, f"{strip}  {len(steps)} of {len(times)} calls, budget {gear.budget:.2f}")
    if isinstance(policy, Gears):
        wanted = f"{policy.target:g} dB, by a margin of {policy.margin:g} dB"
        view.add_row("chosen by", f"the cheapest gear whose guess reaches {wanted}")
        r2 = [[look.predictor.r2 for look in looks if look.predictor] for looks in policy.signal_specs]
        shown = "  ".join(f"gear {g}: " + ", ".join(f"{value:.2f}" for value in values) for g, values in enumerate(r2))
        view.add_row("guesses, held-out R2", shown)
    if isinstance(policy, Plan) and policy.signal_specs is not None:
        seen = "theory expects" if schedule.from_theory else "calibration saw"
        view.add_row("bands", f"of what {seen} at computed steps: report().unlike")


def add_evidence(view: Table, schedule: Schedule) -> None:
    """Adds how good the schedule is."""
    from ..hub.card import format_psnr

    if seen := schedule.evidence:
        mean, low = format_psnr(seen.psnr["mean"]), format_psnr(seen.psnr["p05"])
        view.add_row(
            "evidence",
            f"{mean} on {counted(seen.n, 'held-out prompt')} (5th percentile {low})"
            f" with {seen.calls[0]} of {seen.calls[1]} calls, {seen.speed:.2f}x fewer",
        )
        if plain := seen.baseline:
            mean, low = format_psnr(plain.psnr["mean"]), format_psnr(plain.psnr["p05"])
            view.add_row("as few steps", f"{mean} with {plain.steps} plain steps (5th percentile {low}), same prompts")
        if (floor := seen.precision_floor) is not None:
            view.add_row("precision floor", f"{format_psnr(floor)}: full runs with the last bit of each output moved")
        for cell in seen.matrix or ():
            changed = ", ".join(f"{name} {value}" for name, value in cell.changed.items())
            few = f", {format_psnr(cell.baseline.psnr['mean'])} with as few steps" if cell.baseline else ""
            view.add_row(f"at {changed}", f"{format_psnr(cell.psnr['mean'])} on {counted(cell.n, 'prompt')}{few}")
        if seen.certificate:
            view.add_row("certificate", seen.certificate.sentence)
        if seen.verdict:
            view.add_row("verdict", seen.verdict)
    else:
        view.add_row("evidence", schedule.made.get("evidence") or "none: calibrate with held-out prompts")


# Fronts: a line a point, and the one that is picked


def show_front(path: Path, pick: str | None, to: Path | None, json: bool) -> None:
    """Prints a front, or writes one of its schedules."""
    from ..files import check_writable
    from ..tuning.front import Front

    front = Front.load(path)
    if pick is None and to is None:
        if json:
            print_json(front.data())
        else:
            describe_front(front)
        return
    if pick is None:
        raise ValueError("say which point to write: --pick 10 (calls) or --pick 35dB (quality)")
    point = front.pick(pick)
    where = check_writable(to or Path("schedules") / f"{point.schedule.name}.json")
    said = wrote(where)
    point.schedule.save(where)
    if json:
        print_json({"schedule": str(where), "calls": point.calls, **point.select})
    else:
        out.print(f"{point.calls} calls, {point.select['mean']:.1f} dB; {said}")


def describe_front(front: Front) -> None:
    """Prints a front for people."""
    out.print(Text.assemble((front.name, "bold"), f": {front.target}, {front.trials} trials"))
    numbers = ("calls", "speed", "PSNR dB", "5th pct", "over calibrate", "held-out", "5th pct")
    view = new_table("", *numbers, "found by", right=numbers, whole=(*numbers, "found by"))
    for number, point in enumerate(front.points):
        seen, steps = point.schedule.evidence, len(point.schedule.grid.times)
        held_out = (f"{seen.psnr['mean']:.1f}", f"{seen.psnr['p05']:.1f}") if seen else ("-", "-")
        view.add_row(
            "→" if number == front.chosen else "", str(point.calls), f"{steps / point.calls:.2f}x",
            f"{point.select['mean']:.1f}", f"{point.select['p05']:.1f}", f"{point.gain:+.2f}", *held_out,
            point.origin,
        )  # fmt: skip
    out.print(view)


# Faults


def lint(
    schedule: Annotated[Path, Argument(help="A schedule, or settings of another engine.")],
    profile: Annotated[Path | None, Option(help="Score it on this profile, and find its cliffs.")] = None,
    json: opt.Json = False,
) -> None:
    """Say what is wrong with a schedule: inert thresholds, cliffs, polynomials that fall or are negative.

    Ends with 1 where there are errors.

    Example:  adaptcache lint teacache.json
    """
    from ..engines.formats.read import read_schedule
    from ..engines.lint import lint as find_faults
    from ..profile import Profile

    found = find_faults(read_schedule(schedule), Profile.load(profile) if profile else None)
    if json:
        print_json([asdict(fault) for fault in found])
    for fault in () if json else found:
        out.print(Text.assemble((fault.level, COLOURS[fault.level]), printable(f" {fault.code}: {fault.message}")))
    if not (json or found):
        out.print(f"{schedule}: nothing found")
    if any(fault.level == "error" for fault in found):
        raise typer.Exit(1)


# What can be named


def models(json: opt.Json = False) -> None:
    """List the presets that --model knows; it also takes a folder or a hub id.

    Example:  adaptcache models
    """
    from ..presets import Preset, names

    presets = [Preset.load(name) for name in names()]
    if json:
        print_json([preset.model_dump() for preset in presets])
        return
    view = new_table("preset", "steps", "checkpoint", "", right=["steps"], whole=["steps"])
    for preset in presets:
        gated = " (ask for access first)" if preset.gated else ""
        view.add_row(preset.name, str(preset.steps), preset.checkpoint, preset.about + gated)
    out.print(view)


def methods(json: opt.Json = False) -> None:
    """List the published methods that can be named: policy, forecast, site, and what they need.

    Example:  adaptcache methods
    """
    from ..schedule.methods import METHODS, published_sets

    models = {name: list(published_sets(m.published)) if m.published else [] for name, m in METHODS.items()}
    if json:
        print_json([{"name": name, **asdict(m), "models": models[name]} for name, m in METHODS.items()])
        return
    if out.width < WHOLE:
        view, kind = new_table("method", "fit", "policy", "forecast", "site", whole=("fit", "policy", "forecast")), ""
        for name, method in METHODS.items():
            if kind != (kind := method.kind):
                view.add_row(Text(kind, "bold"))
            view.add_row(name, "yes" if method.needs else "", method.policy, method.forecast, method.sites)
        out.print(view)
        out.print("fit: by calibrate --method. A wider screen, or --json, has the papers too.")
        return
    view = new_table("method", "kind", "site", "policy", "forecast", "needs", "paper")
    for name, method in METHODS.items():
        needs = f"profile, or 1 of {len(models[name])} models" if method.needs == "model" else method.needs
        paper = method.paper.removeprefix("https://").removeprefix("arxiv.org/abs/")
        view.add_row(name, method.kind, method.sites, method.policy, method.forecast, needs, paper)
    print_whole(view)
