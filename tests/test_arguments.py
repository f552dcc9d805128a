"""Arguments of a wrong kind: a sentence that names the argument comes before any run, or it just works."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import schedule_of

import adaptcache
from adaptcache.errors import AttachError
from tests.alike import assert_alike
from tests.pipelines.setup import noise
from tests.pipelines.table import built, counted
from tests.toy import PROMPTS, Pipe

HOW: dict[str, Any] = {"num_inference_steps": 8, "budget": 0.5}
SIZE = {"height": 16, "width": 16}
REFUSALS = (TypeError, ValueError, AttachError)
OURS = {
    "generator": torch.Generator().manual_seed(0),
    "output_type": "pil",
    "num_inference_steps": 4,
    "latents": noise(3, 1, 16, 16),
    "return_dict": True,
    "prompt": "a lighthouse",
}


def calibrated(pipe: Any, prompts: Any = PROMPTS, **options: Any) -> adaptcache.Schedule:
    return adaptcache.calibrate(pipe, prompts, **{**HOW, **options})


# What adaptcache sets itself


@pytest.mark.parametrize("name", OURS)
def test_what_adaptcache_sets_itself_is_refused_before_any_run(name: str) -> None:
    setup = built("Flux")
    given = {**setup.call, name: OURS[name]}
    with counted(setup.pipe) as calls, pytest.raises((ValueError, TypeError), match=f"sets {name} itself"):
        calibrated(setup.pipe, setup.prompts[:2], pipe_kwargs=given, eval_prompts=setup.prompts[2:])
    assert not calls


@pytest.mark.parametrize("name", ["generator", "output_type", "latents"])
@pytest.mark.parametrize("where", ["prompts", "eval_prompts"])
def test_nor_may_a_prompt_set_it(name: str, where: str) -> None:
    setup = built("Flux")
    rows = {"prompts": setup.prompts[:2], "eval_prompts": setup.prompts[2:]}
    rows[where] = [{**row, name: OURS[name]} for row in rows[where]]
    with counted(setup.pipe) as calls, pytest.raises(ValueError, match=rf"sets {name} itself.*{where}.*\[0\]"):
        calibrated(setup.pipe, pipe_kwargs=setup.call, **rows)
    assert not calls


@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
def test_by_its_own_name_or_among_the_others_it_is_the_same(verb: str) -> None:
    setup = built("Flux")
    given = {"calibrate": (setup.prompts[:2],), "evaluate": ([], setup.prompts[:2])}[verb]
    with counted(setup.pipe) as calls, pytest.raises(ValueError, match="sets latents itself"):
        getattr(adaptcache, verb)(setup.pipe, *given, 8, latents=OURS["latents"], **setup.call)
    assert not calls


# Prompts


def test_one_text_is_not_taken_for_a_list_of_letters() -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises((TypeError, ValueError), match="prompts"):
        calibrated(pipe, "a lighthouse")
    assert not calls


def test_one_held_out_text_is_not_taken_for_a_list_of_letters() -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises((TypeError, ValueError), match=r"held.out"):
        calibrated(pipe, eval_prompts="a lighthouse")
    assert not calls


@pytest.mark.parametrize("bad", [{"prompt": "one mapping"}, 7, None, [b"bytes"], ["a", 3], [["a", "b"]]])
def test_what_is_no_prompt_is_named(bad: Any) -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises(TypeError, match="prompts"):
        calibrated(pipe, bad)
    assert not calls


def test_prompts_from_a_generator_are_used_or_refused_in_words() -> None:
    made = calibrated(Pipe(), (prompt for prompt in PROMPTS), eval_prompts=iter(["new", "words"]))
    assert made.evidence.n == 2
    assert_alike(made.rules, calibrated(Pipe()).rules)


@pytest.mark.parametrize("without", ["the first prompt", "the second prompt"])
def test_prompts_of_a_batch_that_name_different_arguments_are_refused(without: str) -> None:
    setup = built("Stable Diffusion 1.5")
    negative = {"negative_prompt_embeds": setup.call["negative_prompt_embeds"]}
    rows = [setup.prompts[0] | negative, setup.prompts[1] | negative | {"guidance_scale": 2.0}]
    rows = rows if without == "the first prompt" else rows[::-1]
    with counted(setup.pipe) as calls, pytest.raises(ValueError, match="guidance_scale"):
        calibrated(setup.pipe, rows, pipe_kwargs=SIZE, batch_size=2)
    assert not calls


def test_held_out_prompts_with_an_argument_that_is_not_taken_are_refused_before_any_run() -> None:
    setup = built("Flux")
    rows = [{**row, "hieght": 16} for row in setup.prompts[2:]]
    with counted(setup.pipe) as calls, pytest.raises(TypeError, match="takes no hieght"):
        calibrated(setup.pipe, setup.prompts[:2], pipe_kwargs=setup.call, eval_prompts=rows)
    assert not calls


# Batches, steps, schedules


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_prompts_is_refused_by_name(size: int) -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises(ValueError, match=f"(?i)batch.size.*{size}"):
        calibrated(pipe, batch_size=size)
    assert not calls


@pytest.mark.parametrize("steps", [0, -4])
def test_no_steps_are_refused_by_name(steps: int) -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises(ValueError, match=f"num_inference_steps.*{steps}"):
        calibrated(pipe, num_inference_steps=steps)
    assert not calls


def test_image_to_image_with_no_step_left_says_so() -> None:
    setup = built("Stable Diffusion image-to-image")
    with pytest.raises(ValueError, match=r"(?i)no step|0 steps|strength"):
        calibrated(setup.pipe, setup.prompts[:2], num_inference_steps=10, pipe_kwargs={**setup.call, "strength": 0.05})


def test_a_path_given_for_a_schedule_is_loaded(tmp_path) -> None:
    path = (schedule := calibrated(Pipe())).save(tmp_path / "mine.json")
    for given in (path, str(path)):
        with adaptcache.attach(Pipe(), given) as handle:
            assert handle.schedule.steps() == schedule.steps()


def test_a_schedule_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(REFUSALS, match=r"(?i)schedule"):
        adaptcache.attach(Pipe(), None)


@pytest.mark.parametrize("groups", [["one"], ["one", "one", "two"]])
def test_subjects_have_to_be_as_many_as_held_out_prompts(groups: list[str]) -> None:
    pipe = Pipe()
    with counted(pipe) as calls, pytest.raises(ValueError, match=f"{len(groups)} groups for 2 held-out"):
        calibrated(pipe, eval_prompts=["new", "words"], groups=groups)
    assert not calls


# Names of options


class Loose(Pipe):
    """Takes whatever it is given."""

    def __call__(self, prompt, num_inference_steps=12, generator=None, output_type="latent", strength=1.0, **more):
        self.seen = more
        return super().__call__(prompt, num_inference_steps, generator)


def test_arguments_of_the_pipeline_stand_beside_options_or_together() -> None:
    setup = built("Flux")
    beside = calibrated(setup.pipe, setup.prompts[:2], **setup.call)
    together = calibrated(setup.pipe, setup.prompts[:2], pipe_kwargs=setup.call)
    assert beside == together
    with pytest.raises(TypeError, match="height is given twice"):
        calibrated(setup.pipe, setup.prompts[:2], height=16, pipe_kwargs=setup.call)


@pytest.mark.parametrize("kind", [Pipe, Loose])
@pytest.mark.parametrize(
    ("name", "meant"),
    [("sped", "speed"), ("batchsize", "batch_size"), ("eval_prompt", "eval_prompts"), ("min_psnrs", "min_psnr"),
     ("num_inference_step", "num_inference_steps"), ("cachedir", "cache_dir")],
)  # fmt: skip
def test_a_misspelt_option_is_not_swallowed_by_a_pipeline_that_takes_anything(
    kind: type, name: str, meant: str
) -> None:
    pipe = kind()
    with counted(pipe) as calls, pytest.raises(TypeError, match=rf"no {name} \(did you mean {meant}\?\)"):
        adaptcache.calibrate(pipe, PROMPTS, 8, budget=0.5, **{name: 2})
    assert not calls


def test_what_a_pipeline_takes_without_naming_it_is_given_together() -> None:
    pipe = Loose()
    with pytest.raises(TypeError, match=r"takes no sampler_options.*pipe_kwargs=\{"):
        calibrated(pipe, sampler_options=3)
    assert calibrated(pipe, pipe_kwargs={"sampler_options": 3}).made["call"] == {"sampler_options": 3}
    assert calibrated(pipe, strength=0.9).made["call"] == {"strength": 0.9}  # it names this one


OLD = {
    "steps": ("num_inference_steps", 8), "call": ("pipe_kwargs", {}), "held_out": ("eval_prompts", ["new"]),
    "teacher_steps": ("reference_steps", 16), "at_most": ("max_failure_rate", 0.05), "store": ("cache_dir", None),
}  # fmt: skip


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_works_and_warns_at_the_line_of_the_call(old: str) -> None:
    new, value = OLD[old]
    given = {"num_inference_steps": 8, "budget": 0.5}
    given.pop(new, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is called {new} now") as warned:
        made = adaptcache.calibrate(Pipe(), PROMPTS, **given, **{old: value})
    assert [one.filename for one in warned if one.category is DeprecationWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adaptcache.calibrate(Pipe(), PROMPTS, **{**given, new: value}) == made
    with pytest.raises(TypeError, match=f"{old} and {new} are one argument"):
        adaptcache.calibrate(Pipe(), PROMPTS, budget=0.5, **{old: value, new: value})


def test_an_old_module_is_found_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"adaptcache\.ranks is adaptcache\.distributed now"):
        assert adaptcache.ranks.joined
    with pytest.raises(AttributeError, match="no attribute 'rank'"):
        adaptcache.rank  # noqa: B018


def test_public_functions_show_their_own_arguments() -> None:
    found = inspect.signature(adaptcache.calibrate).parameters
    assert list(found)[:3] == ["pipe", "prompts", "num_inference_steps"] and found["num_inference_steps"].default == 28


# Progress


@pytest.mark.parametrize("options", ["", "progress=False", "progress=None"])
def test_a_bar_is_drawn_by_default_and_none_where_it_is_not_wanted(options: str) -> None:
    code = (
        "import adaptcache; from tests.euler import EulerEngine\n"
        f"adaptcache.calibrate(EulerEngine(), ['a', 'fox'], 8, budget=0.5, {options})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    root = Path(adaptcache.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    stages = ("full runs", "sensitivity of each step", "matching 4 calls")
    assert [f"{stage}: 100%" in done.stderr for stage in stages] == [not options] * 3
    assert done.stdout == "" and (not options or done.stderr == "")


def test_progress_rises_to_its_end_in_every_stage() -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    calibrated(
        Pipe(), eval_prompts=["new", "words", "here"], batch_size=2,
        progress=lambda stage, done, of: seen.setdefault(stage, []).append((done, of)),
    )  # fmt: skip
    assert next(iter(seen)) == "full runs" and "" not in seen
    for values in seen.values():
        assert values == sorted(values) and values[-1][0] == values[-1][1]


# Memory


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
              RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_where_memory_is_spent_the_options_that_help_are_named(error: Exception) -> None:
    pipe = Pipe()

    def spent(*_: Any) -> None:
        raise error

    pipe.transformer.register_forward_hook(spent)
    with pytest.raises(type(error)) as raised:
        calibrated(pipe, batch_size=4)
    (note,) = raised.value.__notes__
    for option in ("batch_size=1", "height=512", "enable_model_cpu_offload", "4 prompts"):
        assert option in note


def test_other_errors_get_no_such_note() -> None:
    pipe = Pipe()

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    pipe.transformer.register_forward_hook(broken)
    with pytest.raises(RuntimeError) as raised:
        calibrated(pipe)
    assert not hasattr(raised.value, "__notes__")


def test_numbers_of_numpy_are_kept_and_compared_as_pythons(pipe: Any, prompts: list[Any]) -> None:
    size = {"height": np.int64(16), "width": np.int64(16), "guidance_scale": np.float32(3.5)}
    schedule = adaptcache.calibrate(
        pipe, prompts[:2], np.int64(4), gears=np.array([0.5, 0.75]), min_psnr=20, seed=np.int64(3),
        batch_size=np.int64(2), progress=False, **size,
    )  # fmt: skip
    assert schedule.made["call"] == {"height": 16, "width": 16, "guidance_scale": 3.5}
    with adaptcache.attach(pipe, schedule) as handle:
        pipe(**prompts[0], num_inference_steps=4, height=16, width=16, guidance_scale=3.5, output_type="latent")
    assert handle.report().evidence == "calibrated"


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"num_inference_steps": 4.0}, "num_inference_steps must be a whole number, got 4.0"),
        ({"seed": "3"}, "seed must be a whole number, got '3'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"reference_steps": 8.0}, "reference_steps must be a whole number, got 8.0"),
        ({"params": {"x": 1}}, "are of a published method"),
    ],
)
def test_what_is_no_number_or_goes_nowhere_is_refused_before_any_run(
    bad: dict[str, Any], complaint: str, pipe: Any, prompts: list[Any]
) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        adaptcache.calibrate(pipe, prompts, **{"num_inference_steps": 4, "speed": 2, **bad})


def test_nothing_is_measured_on_no_prompts_and_schedules_may_be_files(
    pipe: Any, prompts: list[Any], tmp_path: Path
) -> None:
    file = schedule_of(pipe, [0, 2], steps=4).save(tmp_path / "s.json")
    options = {"progress": False, "height": 16, "width": 16}
    assert adaptcache.evaluate(pipe, file, prompts[:1], 4, **options)[1].calls == 2
    with pytest.raises(ValueError, match="no prompts to measure on"):
        adaptcache.evaluate(pipe, file, [], 4, **options)
    with pytest.raises(ValueError, match="one or more, got 1, 0 and None"):
        adaptcache.compare(pipe, prompts[:1], [], [0.5], 4, **options)
