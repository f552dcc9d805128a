"""Train the video demo model: `python -m calibration.demo_video` (resumes where it was stopped)."""

import argparse
import math
from statistics import fmean

import torch

from .basis import Basis
from .export import FOLDER, WORK, export_pipeline
from .sheet import OUTPUT, draw_sheet
from .train import STEPS, train_transformer
from .vae import train_vae


def main() -> None:
    """Train autoencoder and transformer, export the pipeline and draw the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="transformer steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="transformer wall-clock limit")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    basis = Basis.load(WORK / "basis.safetensors")
    vae = train_vae(WORK / "vae", basis)
    trainer = train_transformer(WORK, basis, options.steps, options.minutes)
    export_pipeline(trainer.average, vae, FOLDER)
    draw_sheet(FOLDER, OUTPUT)
    loss, minutes = fmean(trainer.losses[-100:]), trainer.seconds / 60
    print(f"{trainer.step} steps, {minutes:.1f} minutes, loss {loss:.3f}: {FOLDER}")


if __name__ == "__main__":
    main()
