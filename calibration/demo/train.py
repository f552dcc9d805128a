"""Training of the transformer and its text encoders by rectified flow."""

import copy
import math
import os
import time
from pathlib import Path
from statistics import fmean

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from .batches import load_training_set
from .model import TextToImage
from .text import load_tokenizers

STEPS = 2500
EMA = 0.99
DECAY_FROM = 0.9  # share of the training after which the learning rates fall to zero
CHECKPOINT_EVERY = 100


class Trainer:
    """The model, its average and its optimisers, resumable from a checkpoint.

    Args:
        folder: Where `checkpoint.pt` and the log are kept.
        model: The freshly built model.
    """

    def __init__(self, folder: Path, model: TextToImage) -> None:
        matrices, rest = model.split_parameters()
        self.folder, self.model, self.average = folder, model, copy.deepcopy(model)
        self.optimizers = [
            torch.optim.Muon(matrices, 2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, 1e-3, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self.rates = [2e-3, 1e-3]
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.path = folder / "checkpoint.pt"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        stored = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.average.load_state_dict(stored["average"])
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds = stored["step"], stored["seconds"]
        self.losses = stored["losses"]

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        stored = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "losses": self.losses,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(stored, partial)
        os.replace(partial, self.path)

    def update(self, batch: tuple[torch.Tensor, ...], progress: float) -> float:
        """Make one step.

        Args:
            batch: What `Captioned.batch` returns.
            progress: Share of the training that is done, in [0, 1]; sets the learning rates.

        Returns:
            The loss.
        """
        loss = self.model.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = min(1, (self.step + 1) / 50, (1 - progress) / (1 - DECAY_FROM))
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        # Early on a slow average would still hold the random start.
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return loss.item()


def train_transformer(
    folder: Path, vae: AutoencoderKL, steps: int = STEPS, minutes: float = math.inf
) -> Trainer:
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
    clip_tokenizer, t5_tokenizer = load_tokenizers(folder)
    trainer = Trainer(folder, TextToImage(clip_tokenizer, t5_tokenizer))
    trainer.model.transformer.compile()  # about 15 % faster steps after a minute of compiling
    data = load_training_set(vae, clip_tokenizer, t5_tokenizer)
    bar = tqdm(total=steps, initial=trainer.step, desc="training transformer", mininterval=10)
    while True:
        progress = max(trainer.step / steps, trainer.seconds / (60 * minutes))
        if progress >= 1:
            break
        start = time.monotonic()
        trainer.losses.append(trainer.update(data.batch(trainer.step), progress))
        trainer.seconds += time.monotonic() - start
        bar.update()
        bar.set_postfix(loss=f"{fmean(trainer.losses[-50:]):.4f}", refresh=False)
        if trainer.step % CHECKPOINT_EVERY == 0:
            trainer.save()
    trainer.save()
    bar.close()
    return trainer
