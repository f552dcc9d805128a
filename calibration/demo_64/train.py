"""Training of the transformer and its text encoders by rectified flow, on a GPU or a CPU."""

import copy
import os
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..demo.train import split_parameters
from .batches import Pool
from .model import TextToImage
from .muon import Muon
from .vae import half_precision

RATES = (3e-3, 1.5e-3)  # of Muon and of AdamW
WARM_UP = 200  # steps
DECAY_FROM = 0.6  # share of the training after which the learning rates fall to zero
EMA = 0.999
REPORT_EVERY = 100  # steps; reading a loss makes the GPU wait
SAVE_EVERY = 60.0  # seconds


class Trainer:
    """The model, its average and its optimisers, resumable from a checkpoint.

    Args:
        folder: Where `checkpoint.pt` is kept.
        model: The freshly built model, on the device to train on.
    """

    def __init__(self, folder: Path, model: TextToImage) -> None:
        matrices, rest = split_parameters(model)
        self.model, self.average = model, copy.deepcopy(model).requires_grad_(False)
        self.device = matrices[0].device
        self.optimizers = [
            Muon(matrices, RATES[0], weight_decay=0.01),
            torch.optim.AdamW(rest, RATES[1], betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        ]
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.path = folder / "checkpoint.pt"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        stored = torch.load(self.path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.average.load_state_dict(stored["average"])
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds, self.losses = stored["step"], stored["seconds"], stored["losses"]

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

    def update(self, batch: tuple[Tensor, ...], progress: float) -> Tensor:
        """Make one step.

        Args:
            batch: What the model's `loss` takes.
            progress: Share of the training that is done, in [0, 1]; sets the learning rates.

        Returns:
            The loss, still on the device.
        """
        with half_precision(self.device):
            loss = self.model.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = min(1, (self.step + 1) / WARM_UP, (1 - progress) / (1 - DECAY_FROM))
        for optimizer, rate in zip(self.optimizers, RATES, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        # Early on a slow average would still hold the random start.
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        return loss.detach()

    def run(self, pool: Pool, batch_size: int, steps: int, minutes: float) -> None:
        """Train up to whichever limit is nearer; the learning rate decays towards it.

        Args:
            pool: The training set, on the same device.
            batch_size: Pictures a step.
            steps: Number of optimiser steps, with those made before.
            minutes: Wall-clock limit, with the minutes spent before, without those of compiling.
        """
        bar = tqdm(total=steps, initial=self.step, desc="training transformer", mininterval=10)
        fresh, before, saved = [], self.seconds, time.monotonic()
        start, begun = saved, self.step
        while (progress := max(self.step / steps, self.seconds / (60 * minutes))) < 1:
            fresh.append(self.update(pool.batch(self.step, batch_size), progress))
            if self.step == begun + 1:  # that one compiled
                fresh[0].item()
                start = time.monotonic()
            self.seconds = before + time.monotonic() - start
            bar.update()
            if self.step % REPORT_EVERY == 0:
                self.losses += torch.stack(fresh).tolist()
                bar.set_postfix(loss=f"{sum(self.losses[-REPORT_EVERY:]) / REPORT_EVERY:.4f}", refresh=False)
                fresh = []
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.losses += [loss.item() for loss in fresh]
        self.save()
        bar.close()
