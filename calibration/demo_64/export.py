"""Export to a FluxPipeline folder in float16.

`python -m calibration.demo_64.export FOLDER` exports the last checkpoint of a running training.
"""

import copy
from pathlib import Path

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

from ..demo.data import HERE
from ..demo.export import averaged, write_pipeline
from ..demo.options import export_folder
from .model import TextToImage, load_tokenizers

WORK = Path(__file__).parent / ".work"
FOLDER = HERE / "emoji-flux-64"  # where the preset looks


def export_pipeline(model: TextToImage, vae: AutoencoderKL, folder: Path, work: Path = WORK) -> None:
    """Write `folder`, replacing what is there.

    Args:
        model: The averaged weights.
        vae: The autoencoder, with its scaling and shift factor.
        folder: What `FluxPipeline.from_pretrained` will be given.
        work: Where the training keeps its tokenizers.
    """
    tokenizer, tokenizer_2 = load_tokenizers(work)
    model, vae = copy.deepcopy((model, vae))  # writing would halve the caller's weights too
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=model.transformer,
    )
    write_pipeline(pipeline.to("cpu"), folder)


def export_checkpoint(work: Path, folder: Path) -> int:
    """Export the averaged weights of the last checkpoint.

    Returns:
        The step that the checkpoint was written at.
    """
    model, step = averaged(TextToImage(*load_tokenizers(work)), work)
    export_pipeline(model, AutoencoderKL.from_pretrained(work / "vae"), folder, work)
    return step


if __name__ == "__main__":
    wanted = export_folder(__doc__, FOLDER)
    print(f"exported step {export_checkpoint(WORK, wanted)} to {wanted}")
