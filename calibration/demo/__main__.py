"""Train the demo model: `python -m calibration.demo` (resumes where it was stopped).

`--small FOLDER` trains a smaller transformer beside the shipped autoencoder instead, and writes a pipeline to
FOLDER: to see whether what is measured on one model holds on another.
"""

import argparse
from pathlib import Path
from statistics import fmean

import torch
from diffusers import AutoencoderKL

from .data import HERE
from .export import WORK, export_pipeline
from .model import SHIPPED, SMALL
from .options import training_options
from .sheet import OUTPUT, draw_sheet
from .text import load_tokenizers
from .train import STEPS, train_transformer
from .vae import train_vae


def main() -> None:
    """Train autoencoder and transformer, export the pipeline and draw the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", type=Path, metavar="FOLDER", help="train a smaller one into FOLDER")
    options = training_options(parser, STEPS)
    shipped = HERE / "emoji-flux-32"
    if options.small:
        folder, sheet, work, size = options.small, options.small.with_suffix(".png"), WORK / "small", SMALL
        vae = AutoencoderKL.from_pretrained(shipped / "vae", dtype=torch.float32)
    else:
        folder, sheet, work, size = shipped, OUTPUT, WORK, SHIPPED
        vae = train_vae(WORK / "vae")
    trainer = train_transformer(work, vae, options.steps, options.minutes, size)
    export_pipeline(trainer.average, vae, folder, load_tokenizers(work))
    draw_sheet(folder, sheet)
    loss, minutes = fmean(trainer.losses[-100:]), trainer.seconds / 60
    print(f"{trainer.step} steps, {minutes:.1f} minutes, loss {loss:.3f}: {folder}")


if __name__ == "__main__":
    main()
