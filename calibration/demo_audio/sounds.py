"""Sounds of one second with captions: six instruments play fourteen notes in six ways."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
RATE = 4096  # samples a second
LENGTH = 4096  # samples
LOUDEST = 0.8
ATTACK, RELEASE = 0.01, 0.03  # seconds
STRETCH = math.log(1.5)  # rising and falling notes go by a fifth

# Partials: frequency over that of the note, loudness, and how fast it decays (1 / s).
INSTRUMENTS: dict[str, list[tuple[float, float, float]]] = {
    "flute": [(1, 1.0, 0), (2, 0.2, 0), (3, 0.06, 0)],
    "clarinet": [(k, 1 / k, 0) for k in (1, 3, 5, 7)],
    "organ": [(1, 1.0, 0), (2, 0.8, 0), (4, 0.6, 0), (8, 0.3, 0)],
    "violin": [(k, 1 / k, 0) for k in range(1, 9)],
    "guitar": [(k, 1 / k, 1.5 * k) for k in range(1, 9)],
    "bell": [(1, 1.0, 1.5), (2.76, 0.7, 3), (5.4, 0.4, 6)],
}
NOTES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}  # half tones above C
OCTAVES = {"low": 130.81, "high": 261.63}  # Hz of its C

# How a note is played, from u = 0 s to u = 1 s: log of the frequency over the note's, and loudness.
WAYS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "held": lambda u: (0 * u, 1 + 0 * u),
    "rising": lambda u: (STRETCH * u, 1 + 0 * u),
    "falling": lambda u: (STRETCH * (1 - u), 1 + 0 * u),
    "trembling": lambda u: (0 * u, 0.6 - 0.4 * torch.cos(2 * math.pi * 6 * u)),
    "swelling": lambda u: (0 * u, 0.05 + 0.95 * u),
    "twice": lambda u: (0 * u, ((u % 0.5) < 0.38).float()),
}


@dataclass(frozen=True)
class Scenes:
    """What sounds are of, as numbers of instruments, octaves, notes and ways.

    Args:
        instruments: Numbers of `INSTRUMENTS`, with shape (n,).
        octaves: Numbers of `OCTAVES`, with shape (n,).
        notes: Numbers of `NOTES`, with shape (n,).
        ways: Numbers of `WAYS`, with shape (n,).
        chance: Where the waves begin and how loud it is, two numbers in [0, 1], with shape (n, 2).
    """

    instruments: Tensor
    octaves: Tensor
    notes: Tensor
    ways: Tensor
    chance: Tensor

    @classmethod
    def draw(cls, n: int, generator: torch.Generator) -> "Scenes":
        """Draw scenes at random."""
        sizes = (len(INSTRUMENTS), len(OCTAVES), len(NOTES), len(WAYS))
        picks = [torch.randint(size, (n,), generator=generator) for size in sizes]
        return cls(*picks, torch.rand(n, 2, generator=generator))

    def captions(self) -> list[str]:
        """Return what is heard, in words."""
        rows = zip(*(part.tolist() for part in (self.instruments, self.octaves, self.notes, self.ways)), strict=True)
        names = [list(known) for known in (INSTRUMENTS, OCTAVES, NOTES, WAYS)]
        return [caption(*(known[k] for known, k in zip(names, row, strict=True))) for row in rows]


def caption(instrument: str, octave: str, note: str, way: str) -> str:
    """Write the caption the model is trained with."""
    return f"{instrument} playing {octave} {note} {way}"


def frequency(octave: str, note: str) -> float:
    """Return the frequency of a note in Hz."""
    return OCTAVES[octave] * 2 ** (NOTES[note] / 12)


def play(scenes: Scenes) -> Tensor:
    """Return sounds with shape (n, 1, LENGTH) in [-1, 1], as the autoencoder takes them."""
    u = torch.arange(LENGTH) / RATE
    octaves, halves = torch.tensor(list(OCTAVES.values())), torch.tensor(list(NOTES.values()))
    hertz = octaves[scenes.octaves] * 2 ** (halves[scenes.notes] / 12)
    each = [way(u) for way in WAYS.values()]
    bend = torch.stack([log for log, _ in each])[scenes.ways]
    loud = torch.stack([envelope(loudness, way) for (_, loudness), way in zip(each, WAYS, strict=True)])
    turns = scenes.chance[:, :1] + (hertz[:, None] * bend.exp()).cumsum(1) / RATE
    # A note that is played twice decays twice.
    since = torch.where(scenes.ways[:, None] == list(WAYS).index("twice"), u % 0.5, u)
    waves = torch.stack([timbre(partials) for partials in INSTRUMENTS.values()])[scenes.instruments]
    sound = torch.zeros(len(hertz), LENGTH)
    for ratio, loudness, decay in (partial.T for partial in waves.unbind(1)):
        heard = ratio[:, None] * hertz[:, None] * bend.exp() < 0.45 * RATE  # what a sampler may hold
        fading = (-decay[:, None] * since).exp() * loudness[:, None] * heard
        sound += fading * torch.sin(2 * math.pi * ratio[:, None] * turns)
    sound = sound * loud[scenes.ways]
    volume = LOUDEST * (0.75 + 0.25 * scenes.chance[:, 1:])
    return (volume * sound / sound.abs().amax(dim=1, keepdim=True))[:, None]


def timbre(partials: list[tuple[float, float, float]]) -> Tensor:
    """Return partials with shape (8, 3); those that an instrument lacks are silent."""
    return torch.tensor([*partials, *[(1.0, 0.0, 0.0)] * (8 - len(partials))]).float()


def envelope(loudness: Tensor, way: str) -> Tensor:
    """Let a sound begin and end without a click."""
    u = torch.arange(LENGTH) / RATE
    gate = ((u / ATTACK).clamp(max=1) * ((1 - u) / RELEASE).clamp(max=1)) * loudness
    if way == "twice":
        inside = u % 0.5
        gate = gate * (inside / ATTACK).clamp(max=1) * ((0.38 - inside) / RELEASE).clamp(0, 1)
    return gate
