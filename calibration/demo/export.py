"""Export to a FluxPipeline folder in float16.

`python -m calibration.demo.export FOLDER` exports the last checkpoint of a running training.
"""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from .data import HERE
from .model import TextToImage
from .options import export_folder
from .text import load_tokenizers

WORK = HERE / ".work"
Model = TypeVar("Model", bound=nn.Module)


def export_pipeline(
    model: TextToImage, vae: AutoencoderKL, folder: Path, tokenizers: tuple[CLIPTokenizer, T5Tokenizer]
) -> None:
    """Write `folder`, replacing what is there.

    Args:
        model: The averaged weights.
        vae: The autoencoder, with its scaling and shift factor.
        folder: What `FluxPipeline.from_pretrained` will be given.
        tokenizers: Those that the training kept.
    """
    tokenizer, tokenizer_2 = tokenizers
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


def write_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in float16, replacing what is in `folder`; its weights are changed."""
    pipeline.to(torch.float16)
    # Models ask for float32 in places; the folder is float16 throughout.
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            nn.Module.half(part)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for path in partial.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a path of the machine that trained it
        # Without a dtype asked for, diffusers loads in float32 but transformers as this says.
        if path.parent.name.startswith("text_encoder"):
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def averaged(model: Model, work: Path) -> tuple[Model, int]:
    """Give a model the averaged weights of the last checkpoint; return it and the step they are of."""
    stored = torch.load(work / "checkpoint.pt", weights_only=True)
    model.load_state_dict(stored["average"])
    return model, stored["step"]


def export_checkpoint(work: Path, folder: Path) -> int:
    """Export the averaged weights of the last checkpoint.

    Returns:
        The step that the checkpoint was written at.
    """
    model, step = averaged(TextToImage(*(tokenizers := load_tokenizers(work))), work)
    export_pipeline(model, AutoencoderKL.from_pretrained(work / "vae"), folder, tokenizers)
    return step


if __name__ == "__main__":
    wanted = export_folder(__doc__)
    print(f"exported step {export_checkpoint(WORK, wanted)} to {wanted}")
