"""Training of the transformer and its text encoders by rectified flow, on a GPU or a CPU."""

import time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..demo import train as demo
from .batches import Pool
from .muon import Muon
from .vae import half_precision

REPORT_EVERY = 100  # steps; reading a loss makes the GPU wait
SAVE_EVERY = 60.0  # seconds


class Trainer(demo.Trainer):
    """The trainer of the other demo models with larger batches, other rates, and bfloat16 on a GPU."""

    RATES, WARM_UP, DECAY_FROM, EMA = (3e-3, 1.5e-3), 200, 0.6, 0.999

    def muon(self, matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of the matrices."""
        return Muon(matrices, self.RATES[0], weight_decay=0.01)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Compute the loss of a batch."""
        with half_precision(self.device):
            return super().loss(batch)

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
