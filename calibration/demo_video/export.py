"""Export to a WanPipeline folder in float16.

`python -m calibration.demo_video.export FOLDER` exports the last checkpoint of a running training.
"""

import copy
from pathlib import Path

from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from ..demo.export import averaged, write_pipeline
from ..demo.options import export_folder
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
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
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
    model, step = averaged(TextToVideo(load_tokenizer(work)), work)
    export_pipeline(model, AutoencoderKLWan.from_pretrained(work / "vae"), folder, work)
    return step


if __name__ == "__main__":
    wanted = export_folder(__doc__, FOLDER)
    print(f"exported step {export_checkpoint(WORK, wanted)} to {wanted}")
