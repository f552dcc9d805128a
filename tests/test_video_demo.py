"""The video demo: what its clips show, what its latents are, and how its training resumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from adaptcache.presets.prompts import read_prompts
from calibration.demo.data import BACKGROUNDS
from calibration.demo.train import Trainer
from calibration.demo_video.basis import Basis, pairs
from calibration.demo_video.batches import BATCH, Captioned
from calibration.demo_video.clips import FRAMES, MOTIONS, Scenes, caption, names, paths
from calibration.demo_video.vae import build_vae


def scenes_of(motion: str, n: int = 5) -> Scenes:
    chance = 2 * torch.rand(n, 2, generator=torch.Generator().manual_seed(3)) - 1
    zeros = torch.zeros(n, dtype=torch.long)
    return Scenes(zeros, zeros, zeros + list(MOTIONS).index(motion), chance)


def clips_of(n: int, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(n, 3, frames, 8, 8, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, scale_factor=(1, 4, 4), mode="trilinear").clamp(-1, 1)


def test_every_motion_does_what_its_caption_says():
    moved = {motion: paths(scenes_of(motion)) for motion in MOTIONS}
    assert all(path.shape == (5, FRAMES, 4) for path in moved.values())
    steps = {motion: path.diff(dim=1) for motion, path in moved.items()}
    assert (steps["moving left"][..., 0] < 0).all() and (steps["moving right"][..., 0] > 0).all()
    assert (steps["growing"][..., 2] > 0).all() and (steps["shrinking"][..., 2] < 0).all()
    assert (steps["spinning"][..., 3] > 0).all()
    up = steps["bouncing"][..., 1].sign()
    assert (up.diff(dim=1) != 0).sum(dim=1).min() >= 2  # up, down and up again


def test_two_clips_of_one_caption_differ():
    first, second = paths(scenes_of("growing"))[:2]
    assert not torch.equal(first, second)


def test_scenes_are_drawn_again_alike_and_say_what_they_show():
    a, b = (Scenes.draw(7, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.captions() == b.captions() and torch.equal(a.chance, b.chance)
    assert a.part(2, 4).captions() == a.captions()[2:4]
    name, motion, colour = (int(rows[0]) for rows in (a.emoji, a.motions, a.colours))
    assert a.captions()[0] == caption(names()[name], list(MOTIONS)[motion], list(BACKGROUNDS)[colour])


def test_the_prompts_are_captions_and_no_emoji_stands_in_both_parts():
    prompts = read_prompts("emoji-clips")
    known = {caption(n, m, c): n for n in names() for m in MOTIONS for c in BACKGROUNDS}
    fitted, held_out = ({known[prompt] for prompt in part} for part in (prompts.calibration, prompts.held_out))
    assert len(fitted) == 16 and len(held_out) == 24
    assert not fitted & held_out


def test_pairs_hold_every_frame_once_and_the_first_one_twice():
    clip = torch.arange(FRAMES).float()[:, None, None].expand(FRAMES, 32, 32).expand(1, 3, FRAMES, 32, 32)
    seen = pairs(clip)[0, :, 0, 0].unflatten(-1, (2, 48))[..., 0]
    assert seen.tolist() == [[0, 0], [1, 2], [3, 4], [5, 6], [7, 8]]


def test_components_are_those_of_least_error():
    rows = pairs(clips_of(8)).flatten(0, 3)
    basis = Basis.fit(clips_of(8))
    centred = rows - basis.mean
    kept = centred @ basis.components @ basis.components.T
    singular = torch.linalg.svdvals(centred.double())[16:]
    assert torch.allclose((centred - kept).square().sum().double(), singular.square().sum(), rtol=1e-3, atol=1e-3)


def test_the_encoder_gives_the_latents_of_the_basis():
    clips = clips_of(3)
    basis = Basis.fit(clips_of(8))
    vae = build_vae(basis).eval()
    with torch.no_grad():
        given = vae.encode(clips).latent_dist.mean
    wanted = basis.encode(clips) * basis.scale[:, None, None, None]
    assert (given - wanted).abs().max() < 0.01 * wanted.abs().max()
    assert vae.config.latents_std == pytest.approx(basis.scale.tolist())


def test_a_batch_depends_on_its_step_alone_and_some_captions_are_dropped():
    latents = torch.randn(50, 16, 5, 2, 2)
    data = Captioned(latents.half(), torch.full((50, 4), 7), torch.zeros(1, 4, dtype=torch.long))
    a, b, other = data.batch(3), data.batch(3), data.batch(4)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[1], other[1])
    assert (a[2] > 0).all() and (a[2] < 1).all()
    dropped = sum(int((data.batch(step)[3][:, 0] == 0).sum()) for step in range(40)) / (40 * BATCH)
    assert 0.07 < dropped < 0.13


class Toy(nn.Module):
    """A model with the parts that the trainer asks for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.Module()
        self.transformer.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.transformer.compile = lambda: None

    def loss(self, x):
        return self.transformer.blocks[0](x).square().mean()


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
    def batch(step):
        return (torch.randn(8, 4, generator=torch.Generator().manual_seed(step)),)

    def trained(folder, *stops):
        folder.mkdir()
        for steps in stops:
            # the rate falls towards the end, so all runs have the same one in sight
            trainer = Trainer(folder, Toy())
            while trainer.step < steps:
                trainer.losses.append(trainer.update(batch(trainer.step), trainer.step / 6).item())
            trainer.save()
        return trainer

    whole, parts = trained(tmp_path / "whole", 6), trained(tmp_path / "parts", 2, 6)
    assert parts.step == 6 and whole.losses == parts.losses
    for a, b in zip(whole.average.parameters(), parts.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_run_stops_at_the_steps_it_was_given(tmp_path):
    trainer = Trainer(tmp_path, Toy())
    trainer.run(lambda step: (torch.ones(2, 4),), 3)
    assert trainer.step == len(trainer.losses) == 3
    assert np.isfinite(trainer.losses).all()
    assert (tmp_path / "checkpoint.pt").exists()
