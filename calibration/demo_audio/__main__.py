"""Train the sound demo model: `python -m calibration.demo_audio` (resumes where it was stopped)."""

import argparse
from statistics import fmean

from ..demo.options import training_options
from .export import FOLDER, WORK, export_pipeline
from .sheet import OUTPUT, draw_sheet
from .train import STEPS, train_transformer
from .vae import train_vae


def main() -> None:
    """Train autoencoder and transformer, export the pipeline and draw the contact sheet."""
    options = training_options(argparse.ArgumentParser(description=__doc__), STEPS)
    trainer = train_transformer(WORK, train_vae(WORK / "vae"), options.steps, options.minutes)
    export_pipeline(trainer.average, FOLDER)
    draw_sheet(FOLDER, OUTPUT)
    loss, minutes = fmean(trainer.losses[-100:]), trainer.seconds / 60
    print(f"{trainer.step} steps, {minutes:.1f} minutes, loss {loss:.3f}: {FOLDER}")


if __name__ == "__main__":
    main()
