"""Train the 64 px demo model: `python -m calibration.demo_64 --device cuda` (resumes if stopped)."""

import argparse
import math
from pathlib import Path
from statistics import fmean

import torch

from ..demo.export import export_pipeline
from ..demo.options import training_options
from .batches import LAYOUTS, fill_pool
from .export import FOLDER, WORK
from .icons import load_icons
from .layouts import Layouts
from .model import TextToImage, load_tokenizers
from .sheet import OUTPUT, draw_sheet
from .train import Trainer
from .vae import train_vae

STEPS, VAE_STEPS = 5_200, 1_850


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1024, help="pictures a step of the transformer")
    parser.add_argument("--layouts", type=int, default=LAYOUTS, help="pictures of each icon in the pool")
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS, help="autoencoder steps")
    parser.add_argument("--vae-minutes", type=float, default=math.inf, help="autoencoder wall-clock limit")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoints are kept")
    parser.add_argument("--no-export", action="store_true", help="leave it at the checkpoint")
    return training_options(parser, STEPS)


def prepare(device: torch.device) -> None:
    """Choose kernels: with torch 2.11 the backward pass of fused attention fails at this shape."""
    if device.type == "cuda":
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def main() -> None:
    """Train autoencoder and transformer, export the pipeline and draw the contact sheet."""
    options = read_options()
    device, work = torch.device(options.device), options.work
    prepare(device)
    torch.manual_seed(0)
    layouts = Layouts(load_icons().to(device), torch.Generator(device).manual_seed(0))
    vae = train_vae(work / "vae", layouts, options.vae_steps, options.vae_minutes)
    tokenizers = load_tokenizers(work)
    layouts.dice.manual_seed(1)
    pool = fill_pool(vae, layouts, tokenizers, options.layouts)
    torch.manual_seed(1)
    trainer = Trainer(work, TextToImage(*tokenizers).to(device))
    if not options.eager:
        trainer.model.transformer.compile_repeated_blocks()
    trainer.run(pool, options.batch, options.steps, options.minutes)
    print(f"{trainer.step} steps of {options.batch}, {trainer.seconds:.0f} s, {summary(trainer.losses)}")
    if not options.no_export:
        export_pipeline(trainer.average.cpu(), vae.cpu(), FOLDER, tokenizers)
        draw_sheet(FOLDER, OUTPUT)


def summary(losses: list[float]) -> str:
    """Say where the loss stands."""
    return f"loss {fmean(losses[-100:]):.4f} (mean of the last {len(losses[-100:])} steps)"


if __name__ == "__main__":
    main()
