"""The common emoji, which the later part of the training concentrates on."""

import json
import tarfile

from .data import ARCHIVE, HERE

GROUPS = ("Animals & Nature", "Food & Drink")
PROMPTS = HERE.parent / "prompts" / "emoji-32.txt"
SHOWN = [  # on the contact sheet
    *("grinning face", "red heart", "alarm clock", "pizza"),
    *("dog face", "cat face", "smiling face with sunglasses", "red apple"),
    *("banana", "strawberry", "watermelon", "hamburger"),
    *("soccer ball", "rocket", "fire", "rainbow"),
    *("automobile", "bicycle", "airplane", "key"),
    *("light bulb", "umbrella", "guitar", "trophy"),
    *("crown", "sunflower", "cactus", "mushroom"),
    *("panda", "penguin", "frog", "octopus"),
]


def common_names() -> list[str]:
    """List the emoji that the model has to know well.

    Returns:
        Animals and food of one word, and all that the prompt file and the contact sheet ask for; the
        latter several times, as they are to be shown that much more often.
    """
    with tarfile.open(ARCHIVE) as tar:
        groups = json.load(tar.extractfile("package/metadata.json"))["categories"]
    words = {word for group in GROUPS for word in groups[group] if "-" not in word}
    return sorted(words) + best_known_names() * 4


def best_known_names() -> list[str]:
    """List the emoji that the prompt file and the contact sheet ask for."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    asked = {line.split(" noto style ")[0] for line in lines if line[:1] not in ("", "#", "[")}
    return sorted(asked | set(SHOWN))
