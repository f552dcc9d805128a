"""A real FluxPipeline, tiny and random: every test of the mechanism runs on the true classes."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from adaptcache.engines.diffusers.identity import fingerprint
from adaptcache.forecasts.extrapolate import Extrapolate
from adaptcache.policies.plan import Plan
from adaptcache.schedule.format import Grid
from adaptcache.schedule.rule import Rule
from adaptcache.schedule.schedule import Schedule
from tests.calls import Call

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))  # spinning threads crawl on busy machines

STEPS = 8
Run = Callable[..., tuple[int, str, str]]
CALL = Call(STEPS, {"height": 16, "width": 16})


def tiny_flux(seed: int = 0, **changes: Any) -> FluxPipeline:
    """Builds a FluxPipeline without text encoders: 2 blocks of width 32, 16 x 16 pixels."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 4, 8],
    }  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0, scaling_factor=1.0,
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
        transformer=FluxTransformer2DModel(**(settings | changes)).eval(),
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embedded(count: int, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Makes prompts that need no text encoder."""
    noise = torch.Generator().manual_seed(seed)
    return [
        {
            "prompt_embeds": torch.randn(1, 6, 32, generator=noise),
            "pooled_prompt_embeds": torch.randn(1, 32, generator=noise),
        }
        for _ in range(count)
    ]


def schedule_of(pipe: Any, compute: list[int], steps: int = STEPS, forecast: Any = None) -> Schedule:
    """Makes a schedule by hand that computes the steps with these numbers of a linear grid."""
    times = tuple(1 - i / steps for i in range(steps))
    rule = Rule(policy=Plan.of(compute, times), forecast=forecast or Extrapolate(order=1))
    grid = Grid(scheduler=type(pipe.scheduler).__name__, times=times)
    return Schedule(name="by-hand", denoiser=fingerprint(pipe), grid=grid, rules=(rule,))


@pytest.fixture
def pipe() -> FluxPipeline:
    return tiny_flux()


@pytest.fixture
def prompts() -> list[dict[str, torch.Tensor]]:
    return embedded(6)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps the profiles of a test out of the user's store."""
    monkeypatch.setenv("ADAPTCACHE_HOME", str(tmp_path / "home"))
    yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the command line in a folder of its own; gives the exit code, stdout and stderr."""
    from adaptcache.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adaptcache", *words])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return command


def refused(result: tuple[int, str, str], complaint: str) -> None:
    """Bad input gave one line on stderr that says what is wrong, and exit code 2."""
    code, out, err = result
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: ") and complaint in err and "Traceback" not in err
