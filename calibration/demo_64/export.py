"""Export to a FluxPipeline folder in float16.

`python -m calibration.demo_64.export FOLDER` exports the last checkpoint of a running training.
"""

from pathlib import Path

from diffusers import AutoencoderKL

from ..demo.data import HERE
from ..demo.export import averaged, export_pipeline
from ..demo.options import export_folder
from .model import TextToImage, load_tokenizers

WORK = Path(__file__).parent / ".work"
FOLDER = HERE / "emoji-flux"  # where the preset looks


def export_checkpoint(work: Path, folder: Path) -> int:
    """Export the averaged weights of the last checkpoint; return the step that it was written at."""
    model, step = averaged(TextToImage(*(tokenizers := load_tokenizers(work))), work)
    export_pipeline(model, AutoencoderKL.from_pretrained(work / "vae"), folder, tokenizers)
    return step


if __name__ == "__main__":
    wanted = export_folder(__doc__, FOLDER)
    print(f"exported step {export_checkpoint(WORK, wanted)} to {wanted}")
