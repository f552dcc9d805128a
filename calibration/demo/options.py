"""What the commands of the three demo models are told."""

import argparse
import math
from pathlib import Path

import torch


def training_options(parser: argparse.ArgumentParser, steps: int) -> argparse.Namespace:
    """Read `--steps`, `--minutes` and `--threads` next to what the parser has, and set the threads."""
    parser.add_argument("--steps", type=int, default=steps, help="transformer steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="transformer wall-clock limit")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def sheet_options(parser: argparse.ArgumentParser, folder: Path, output: Path, schedule: Path) -> argparse.Namespace:
    """Read `--folder`, `--output` and `--schedule` next to what the parser has."""
    parser.add_argument("--folder", type=Path, default=folder)
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--schedule", type=Path, default=schedule, help="what draws the lower of two pictures")
    return parser.parse_args()


def export_folder(description: str | None, folder: Path | None = None) -> Path:
    """Read the folder to export to, where `folder` is the usual one, on one thread beside a training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, nargs="?" if folder else None, default=folder)
    torch.set_num_threads(1)
    return parser.parse_args().folder
