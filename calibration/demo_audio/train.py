"""Training of the sound transformer and its text encoder, with the image demo's loop."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderOobleck
from transformers import T5Tokenizer

from ..demo.text import kept_tokenizer
from ..demo.train import Trainer
from .batches import load_training_set
from .model import TextToSound, build_tokenizer

STEPS = 4000


def load_tokenizer(folder: Path) -> T5Tokenizer:
    """Build the tokenizer on the first call and keep it in `folder`."""
    return kept_tokenizer(folder / "tokenizer", build_tokenizer)


def train_transformer(folder: Path, vae: AutoencoderOobleck, steps: int = STEPS, minutes: float = math.inf) -> Trainer:
    """Train, or continue from the last checkpoint.

    Args:
        folder: Where the checkpoint is kept.
        vae: The trained autoencoder.
        steps: Number of optimiser steps.
        minutes: Wall-clock limit; the learning rate decays towards whichever limit is nearer.

    Returns:
        The trainer, whose `average` is the model to export.
    """
    torch.manual_seed(0)
    tokenizer = load_tokenizer(folder)
    trainer = Trainer(folder, TextToSound(tokenizer))
    trainer.run(load_training_set(vae, tokenizer).batch, steps, minutes)
    return trainer
