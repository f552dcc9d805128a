"""Export to a StableAudioPipeline folder in float16.

`python -m calibration.demo_audio.export FOLDER` exports the last checkpoint of a running training.
"""

import copy
from pathlib import Path

from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioPipeline

from ..demo.export import averaged, write_pipeline
from ..demo.options import export_folder
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
    model, step = averaged(TextToSound(load_tokenizer(work)), work)
    export_pipeline(model, folder, work)
    return step


if __name__ == "__main__":
    wanted = export_folder(__doc__, FOLDER)
    print(f"exported step {export_checkpoint(WORK, wanted)} to {wanted}")
