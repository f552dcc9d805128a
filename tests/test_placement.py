"""Where weights wait, which LoRAs are loaded, and what a calibration will cost: the options of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CALL, STEPS, Run, embedded, refused, tiny_flux
from diffusers import FluxPipeline

import adaptcache
from adaptcache.cache import Cache
from adaptcache.calibration.calibrate import Goal
from adaptcache.calibration.estimate import Size, estimate
from adaptcache.presets.preset import add_loras, compile_denoisers, place
from adaptcache.runs import PromptSet
from adaptcache.schedule.schedule import Schedule
from tests.alike import assert_alike


def calibrated(pipe: Any) -> Schedule:
    rows = embedded(4)
    return adaptcache.calibrate(
        pipe,
        rows[:3],
        STEPS,
        budget=0.5,
        eval_prompts=rows[3:],
        batch_size=2,
        pipe_kwargs=CALL.arguments,
        progress=False,
    )


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_changes_no_schedule_and_stays_on(offload: str) -> None:
    plain = calibrated(tiny_flux())
    pipe = place(tiny_flux(), "cpu", offload)
    found = calibrated(pipe)
    assert_alike([*found.rules, found.kernel, found.evidence], [*plain.rules, plain.kernel, plain.evidence])
    on = pipe.transformer
    assert hasattr(on, "_hf_hook") if offload == "model" else on.proj_out._diffusers_hook.hooks
    assert_alike(calibrated(pipe).rules, plain.rules)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """The file of a LoRA for the tiny pipeline."""
    from peft import LoraConfig, get_peft_model_state_dict

    model = tiny_flux().transformer
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(model))
    return next(tmp_path.glob("*.safetensors"))


def test_loras_are_loaded_at_their_scales(lora: Path) -> None:
    pipe = tiny_flux()
    add_loras(pipe, [f"{lora}@0.5", str(lora)])
    assert pipe.get_active_adapters() == ["lora0", "lora1"]
    scales = {
        name: value for part in pipe.transformer.modules() for name, value in getattr(part, "scaling", {}).items()
    }
    assert scales["lora1"] == 2 * scales["lora0"]


def test_what_is_no_lora_is_refused_by_name(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SOURCE@SCALE, say style.safetensors@0.8; got .*@much"):
        add_loras(tiny_flux(), [f"{lora}@much"])
    with pytest.raises(ValueError, match=r"the LoRA '.*none.safetensors' cannot be loaded"):
        add_loras(tiny_flux(), [str(tmp_path / "none.safetensors")])
    with pytest.raises(ValueError, match="Linear takes no LoRA: leave --lora out"):
        add_loras(torch.nn.Linear(1, 1), ["a"])


def test_denoisers_are_compiled_by_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, compiled = tiny_flux(), []
    monkeypatch.setattr(type(pipe.transformer), "compile_repeated_blocks", lambda self: compiled.append(self))
    compile_denoisers(pipe)
    assert compiled == [pipe.transformer]


def test_an_estimate_counts_what_is_kept_on_disk(tmp_path: Path) -> None:
    pipe, rows = tiny_flux(), embedded(5)
    setup = CALL.of(pipe, batch_size=2, cache=Cache(tmp_path / "cache"))
    found = estimate(setup, PromptSet.of(rows[:3]), PromptSet.of(rows[3:], 3), Goal(budget=0.5))
    assert found.size == Size(STEPS, 4, 3, 2, fewer=4)
    assert found.seconds > found.step > 0
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # nothing was kept of it
    adaptcache.calibrate(
        pipe, rows[:3], STEPS, budget=0.5, eval_prompts=rows[3:], batch_size=2, pipe_kwargs=CALL.arguments,
        progress=False, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    files = [path for path in (tmp_path / "cache").rglob("*.safetensors") if "sensitivity" not in path.name]
    kept = sum(path.stat().st_size for path in files if path.stem != "profile")
    assert abs(found.disk - kept) < 0.2 * kept + 20_000  # what files say of themselves is no part of it


def test_a_dry_run_prints_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    words = ("calibrate", "--dry-run", "--steps", "4", "--fit-on", "2", "--eval-on", "1", "--speed", "2")
    code, out, _ = run(*words, "--json")
    printed = json.loads(out)
    assert code == 0 and printed["passes"] == Size(4, 2, 2, 1).passes()
    code, out, _ = run(*words)
    assert code == 0 and "minutes" in out and "of disk" in out and "full runs                          8 passes" in out
    code, out, _ = run(*words[:-2], "--gears", "0.5,0.75", "--min-psnr", "20", "--json")
    assert code == 0 and json.loads(out)["passes"] == Size(4, (2, 3), 2, 1, batch_size=16).passes()
    code, out, _ = run(*words[:-1], "4", "--effort", "40")
    assert code == 0 and "refining the weights" in out and "at most" in out
    assert not list(tmp_path.glob("schedules/*"))


def test_options_that_are_none_are_refused(run: Run) -> None:
    refused(run("calibrate", "--offload", "disk"), "--offload is one of none, model, group, got 'disk'")
    refused(run("generate", "-p", "a", "--dtype", "int8"), "--dtype is one of float32, float16, bfloat16, got 'int8'")
    for more in (("--method", "magcache"), ("--matrix",), ("--times", "own")):
        refused(run("calibrate", "--dry-run", *more), "--dry-run counts schedules")
