"""Export to a WanPipeline folder in float16.

`python -m calibration.demo_video.export FOLDER` exports the last checkpoint of a running training.
"""

import argparse
import copy
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from ..demo.export import write_pipeline
from .batches import SHIFT
from .clips import HERE
from .model import TextToVideo
from .train import load_tokenizer

WORK = HERE / ".work"
FOLDER = HERE.parent / "demo" / "emoji-wan"  # where the preset looks


def export_pipeline(model: TextToVideo, vae: AutoencoderKLWan, folder: Path, work: Path = WORK) -> None:
    """Write `folder`, replacing what is there.

    Args:
        model: The averaged weights.
        vae: The autoencoder, with the statistics of its latents.
        folder: What `WanPipeline.from_pretrained` will be given.
        work: Where the training keeps its tokenizer.
    """
    model, vae = copy.deepcopy((model, vae))  # writing would halve the caller's weights too
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    write_pipeline(
        WanPipeline(
            tokenizer=load_tokenizer(work),
            text_encoder=model.text_encoder,
            vae=vae,
            scheduler=scheduler,
            transformer=model.transformer,
        ),
        folder,
    )


def export_checkpoint(work: Path, folder: Path) -> int:
    """Export the averaged weights of the last checkpoint.

    Returns:
        The step that the checkpoint was written at.
    """
    stored = torch.load(work / "checkpoint.pt", weights_only=True)
    model = TextToVideo(load_tokenizer(work))
    model.load_state_dict(stored["average"])
    export_pipeline(model, AutoencoderKLWan.from_pretrained(work / "vae"), folder, work)
    return stored["step"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    print(f"exported step {export_checkpoint(WORK, parsed.folder)} to {parsed.folder}")
