"""Training of a transformer and its text encoders by rectified flow, for all demo models."""

import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm

from .batches import load_training_set
from .model import SHIPPED, TextToImage
from .text import load_tokenizers

Batch = tuple[torch.Tensor, ...]
STEPS = 2500
CHECKPOINT_EVERY = 100


class Trainer:
    """The model, its average and its optimisers, resumable from a checkpoint.

    Args:
        folder: Where `checkpoint.pt` is kept.
        model: The freshly built model on the device to train on, with a `loss` of a batch and a `transformer`.
    """

    RATES = (2e-3, 1e-3)  # of Muon and of AdamW
    WARM_UP = 50  # steps
    DECAY_FROM = 0.9  # share of the training after which the learning rates fall to zero
    EMA = 0.99

    def __init__(self, folder: Path, model: nn.Module) -> None:
        matrices, rest = split_parameters(model)
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)
        self.device = matrices[0].device
        self.optimizers = [
            self.muon(matrices),
            torch.optim.AdamW(rest, self.RATES[1], betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.path = folder / "checkpoint.pt"
        if self.path.exists():
            self._load()

    def muon(self, matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of the matrices."""
        return torch.optim.Muon(matrices, self.RATES[0], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    def loss(self, batch: Batch) -> torch.Tensor:
        """Compute the loss of a batch."""
        return self.model.loss(*batch)

    def _load(self) -> None:
        stored = torch.load(self.path, map_location=self.device, weights_only=True)
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

    def update(self, batch: Batch, progress: float) -> torch.Tensor:
        """Make one step.

        Args:
            batch: What the model's `loss` takes.
            progress: Share of the training that is done, in [0, 1]; sets the learning rates.

        Returns:
            The loss, still on the device.
        """
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = min(1, (self.step + 1) / self.WARM_UP, (1 - progress) / (1 - self.DECAY_FROM))
        for optimizer, rate in zip(self.optimizers, self.RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        # Early on a slow average would still hold the random start.
        decay = min(self.EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return loss.detach()

    def run(self, batch: Callable[[int], Batch], steps: int, minutes: float = math.inf) -> None:
        """Train up to whichever limit is nearer; the learning rate decays towards it.

        Args:
            batch: Returns what a step is shown, given its number.
            steps: Number of optimiser steps, with those made before.
            minutes: Wall-clock limit, with the minutes spent before.
        """
        self.model.transformer.compile()  # about 15 % faster steps after a minute of compiling
        bar = tqdm(total=steps, initial=self.step, desc="training transformer", mininterval=10)
        while (progress := max(self.step / steps, self.seconds / (60 * minutes))) < 1:
            start = time.monotonic()
            self.losses.append(self.update(batch(self.step), progress).item())
            self.seconds += time.monotonic() - start
            bar.update()
            bar.set_postfix(loss=f"{fmean(self.losses[-50:]):.4f}", refresh=False)
            if self.step % CHECKPOINT_EVERY == 0:
                self.save()
        self.save()
        bar.close()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split into the matrices of the transformer's blocks (for Muon) and the rest."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        in_block = name.startswith("transformer.") and "blocks." in name
        (matrices if in_block and parameter.ndim == 2 else rest).append(parameter)
    return matrices, rest


def train_transformer(
    folder: Path,
    vae: AutoencoderKL,
    steps: int = STEPS,
    minutes: float = math.inf,
    size: dict[str, int] = SHIPPED,
) -> Trainer:
    """Train, or continue from the last checkpoint.

    Args:
        folder: Where the checkpoint is kept.
        vae: The trained autoencoder.
        steps: Number of optimiser steps.
        minutes: Wall-clock limit; the learning rate decays towards whichever limit is nearer.
        size: Of the transformer.

    Returns:
        The trainer, whose `average` is the model to export.
    """
    torch.manual_seed(0)
    clip_tokenizer, t5_tokenizer = load_tokenizers(folder)
    trainer = Trainer(folder, TextToImage(clip_tokenizer, t5_tokenizer, size))
    trainer.run(load_training_set(vae, clip_tokenizer, t5_tokenizer).batch, steps, minutes)
    return trainer
