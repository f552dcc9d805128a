"""Train the scorer of the demo model's images: `python -m calibration.demo.scorer` (minutes; needs npm).

It learns from the drawings themselves and from what the demo model's autoencoder makes of them, moved and
noisy. A share is spoiled, by blurring or by mixing two, and belongs to a class of its own: such pictures are
not to pass. Every twelfth pair of emoji and background is held out.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save
from torch.nn import functional
from tqdm import trange

from adaptcache.comparison.scorer import Scorer
from adaptcache.files import write_atomically

from .data import BACKGROUNDS, HERE, load_emoji, paint
from .focus import common_names

TARGET = HERE / "emoji-scorer" / "scorer.safetensors"
STEPS = 1500
BATCH = 64
RATE = 3e-3
MOVE = 2  # pixels
NOISE = 0.05
SPOILED = 16  # pictures of a batch


def load_drawings() -> tuple[list[str], torch.Tensor]:
    """Load the common emoji on all backgrounds.

    Returns:
        names: Of length n.
        pictures: With shape (n, backgrounds, 3, 32, 32) in [-1, 1].
    """
    known, rgba = load_emoji()
    names = sorted(set(common_names()) & set(known))
    chosen = rgba[[known.index(name) for name in names]]
    return names, torch.stack([torch.from_numpy(paint(chosen, colour)) for colour in BACKGROUNDS], dim=1)


@torch.no_grad()
def through_vae(pictures: torch.Tensor) -> torch.Tensor:
    """Encode and decode pictures with shape (n, 3, 32, 32): generated ones look like that."""
    vae = AutoencoderKL.from_pretrained(HERE / "emoji-flux-32" / "vae", torch_dtype=torch.float32)
    parts = [vae(part).sample for part in pictures.split(128)]
    return torch.cat(parts).clamp(-1, 1)


def disturbed(pictures: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Move pictures by up to two pixels, each its own way, and add a little noise."""
    padded = functional.pad(pictures, [MOVE] * 4, mode="replicate")
    size, shifts = pictures.shape[-1], torch.randint(2 * MOVE + 1, (len(pictures), 2), generator=dice)
    moved = [picture[:, y : y + size, x : x + size] for picture, (y, x) in zip(padded, shifts, strict=True)]
    noise = torch.randn(pictures.shape, generator=dice) * NOISE * torch.rand(1, generator=dice)
    return torch.stack(moved) + noise


def blurred(pictures: torch.Tensor) -> torch.Tensor:
    """Average each pixel with its neighbours, five by five."""
    return functional.avg_pool2d(pictures, 5, 1, 2, count_include_pad=False)


def mixed(pictures: torch.Tensor, apart: int = 1) -> torch.Tensor:
    """Lay each picture over the one so many places before, half and half."""
    return (pictures + pictures.roll(apart, 0)) / 2


@torch.no_grad()
def accuracy(scorer: Scorer, pictures: torch.Tensor, name: torch.Tensor, colour: torch.Tensor) -> float:
    """Share of pictures with both guesses right."""
    right = []
    for part, n, c in zip(*(values.split(256) for values in (pictures, name, colour)), strict=True):
        names, colours = scorer(part)
        right.append((names.argmax(1) == n) & (colours.argmax(1) == c))
    return float(torch.cat(right).float().mean())


def train(steps: int = STEPS) -> tuple[Scorer, dict[str, float]]:
    """Train the scorer.

    Returns:
        The scorer; and how many pictures pass, of pairs of emoji and background that it never saw.
    """
    torch.manual_seed(0)
    dice = torch.Generator().manual_seed(0)
    names, pictures = load_drawings()
    n, colours = pictures.shape[:2]
    name, colour = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(colours), indexing="ij"))
    flat, held_out = pictures.flatten(0, 1), (name + colour) % 12 == 0
    decoded = through_vae(flat)
    both = torch.stack([flat, decoded])
    scorer, seen = Scorer(names, list(BACKGROUNDS)), torch.nonzero(~held_out).flatten()
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    bar = trange(steps, desc="training scorer", mininterval=5)
    for _ in bar:
        picks = seen[torch.randint(len(seen), (BATCH,), generator=dice)]
        kind = torch.randint(2, (BATCH,), generator=dice)
        shown, wanted = both[kind, picks], name[picks]
        half = SPOILED // 2
        shown = torch.cat([blurred(shown[:half]), mixed(shown[half:SPOILED]), shown[SPOILED:]])
        wanted[:SPOILED] = n  # none of the names
        scores = scorer(disturbed(shown, dice))
        loss = functional.cross_entropy(scores[0], wanted, label_smoothing=0.05)
        loss = loss + functional.cross_entropy(scores[1][SPOILED:], colour[picks][SPOILED:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    scorer.eval()
    kinds = {"drawings": flat, "decoded": decoded, "blurred": blurred(decoded)}
    kinds["mixed"] = mixed(decoded, 7 * colours + 5)  # another emoji on another background
    measured = {
        title: accuracy(scorer, made[held_out], name[held_out], colour[held_out]) for title, made in kinds.items()
    }
    return scorer, measured


def main() -> None:
    """Train, measure and write the scorer, in float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scorer, measured = train(options.steps)
    about = {"names": scorer.names, "backgrounds": scorer.backgrounds, "held_out_accuracy": measured}
    weights = {key: value.half().contiguous() for key, value in scorer.state_dict().items()}
    write_atomically(options.out, save(weights, {"about": json.dumps(about)}))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, held-out accuracy {measured}")


if __name__ == "__main__":
    main()
