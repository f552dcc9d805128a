"""Export to a StableAudioPipeline folder in float16.

`python -m calibration.demo_audio.export FOLDER` exports the last checkpoint of a running training.
"""

import argparse
import copy
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioPipeline

from ..demo.export import write_pipeline
from .model import TextToSound
from .sounds import HERE
from .train import load_tokenizer

WORK = HERE / ".work"
FOLDER = HERE.parent / "demo" / "tones"  # where the preset looks
LEAST, MOST = 0.05, 100.0  # noise levels; Stable Audio has 0.3 and 500


def export_pipeline(model: TextToSound, folder: Path, work: Path = WORK) -> None:
    """Write `folder`, replacing what is there.

    Args:
        model: The averaged weights.
        folder: What `StableAudioPipeline.from_pretrained` will be given.
        work: Where the training keeps its tokenizer and autoencoder.
    """
    model = copy.deepcopy(model)  # writing would halve the caller's weights too
    pipeline = StableAudioPipeline(
        vae=AutoencoderOobleck.from_pretrained(work / "vae"),
        text_encoder=model.text_encoder,
        projection_model=model.projection_model,
        tokenizer=load_tokenizer(work),
        transformer=model.transformer,
        scheduler=CosineDPMSolverMultistepScheduler(sigma_min=LEAST, sigma_max=MOST),
    )
    write_pipeline(pipeline, folder)


def export_checkpoint(work: Path, folder: Path) -> int:
    """Export the averaged weights of the last checkpoint.

    Returns:
        The step that the checkpoint was written at.
    """
    stored = torch.load(work / "checkpoint.pt", weights_only=True)
    model = TextToSound(load_tokenizer(work))
    model.load_state_dict(stored["average"])
    export_pipeline(model, folder, work)
    return stored["step"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    print(f"exported step {export_checkpoint(WORK, parsed.folder)} to {parsed.folder}")
