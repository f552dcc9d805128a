"""The 64 px demo: what its pictures show, what is held out, how it is trained, and how hard it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from transformers import CLIPTokenizer, T5Tokenizer

from adaptcache.presets import calibration_folder, read_prompts, resolve
from calibration.demo.data import BACKGROUNDS
from calibration.demo.text import CLIP_TOKENS, T5_TOKENS
from calibration.demo_64.batches import Pool, noise_levels
from calibration.demo_64.layouts import SCALES, SIZE, Layouts
from calibration.demo_64.measure import decibels
from calibration.demo_64.model import TextToImage
from calibration.demo_64.motifs import caption, icons, names, withheld
from calibration.demo_64.muon import Muon
from calibration.demo_64.sheet import generate
from calibration.demo_64.train import Trainer

WEIGHTS = calibration_folder() / "demo" / "emoji-flux"
PROMPTS = read_prompts("emoji-64")


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blank_layouts(seed: int = 0) -> Layouts:
    """Icons that are black squares."""
    square = torch.zeros(3, 4, 2 * SIZE, 2 * SIZE, dtype=torch.uint8)
    square[:, 3] = 255
    return Layouts(square, dice(seed))


@pytest.fixture
def model() -> TextToImage:
    torch.manual_seed(0)
    made = TextToImage(
        CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer"),
        T5Tokenizer.from_pretrained(WEIGHTS / "tokenizer_2"),
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.05)  # it would start as the identity
    return made


def batch(step: int) -> tuple[torch.Tensor, ...]:
    ids = [torch.randint(1, 99, (1, 1, length), generator=dice()) for length in (CLIP_TOKENS, T5_TOKENS)]
    zeros = torch.zeros(9, dtype=torch.long)
    latents = torch.randn(9, 64, 64, generator=dice())
    return Pool(latents.half(), zeros, zeros, tuple(ids), tuple(i[0] * 0 for i in ids)).batch(step, 4)


def test_the_held_out_captions_are_new_to_the_model_and_share_no_motif_with_the_others():
    known = {
        caption(*icon, colour): (icon[0], withheld(number) == index)
        for number, icon in enumerate(icons())
        for index, colour in enumerate(BACKGROUNDS)
    }
    fitted, held_out = ([known[prompt] for prompt in part] for part in (PROMPTS.calibration, PROMPTS.held_out))
    assert len(fitted) == 16 and not any(new for _, new in fitted)
    assert len(held_out) == 32 and all(new for _, new in held_out)
    assert len({name for name, _ in fitted + held_out}) == 48


def test_no_motif_is_listed_twice():
    assert len(set(names())) == len(names()) == 336


def test_an_icon_is_never_shown_on_the_background_withheld_from_it_and_on_all_others():
    which = torch.arange(24).repeat(200)
    seen = {*zip(which.tolist(), blank_layouts().backgrounds(which).tolist(), strict=True)}
    assert seen == {(i, b) for i in range(24) for b in range(12) if b != withheld(i)}


def test_an_icon_is_whole_wherever_it_stands():
    white = torch.zeros(200, dtype=torch.long)  # number of the background
    pictures = blank_layouts().draw(white, white)
    covered = ((1 - pictures.amax(dim=1)) / 2).clamp(0, 1).mean(dim=(1, 2)).sqrt()
    # The shade darkens white by a tenth at most, and a turned square loses corners at the edge.
    low, high = SCALES
    assert covered.min() > low - 0.03 and covered.max() < high + 0.05


def test_pictures_of_one_caption_differ_and_are_drawn_again_alike():
    zeros = torch.zeros(2, dtype=torch.long)
    first, again = (blank_layouts().draw(zeros, zeros) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


def test_muon_is_that_of_torch():
    shapes = [(48, 48), (96, 48), (48, 96), (48, 48)]
    ours, theirs = ([nn.Parameter(torch.randn(s, generator=dice(1))) for s in shapes] for _ in range(2))
    before = [parameter.detach().clone() for parameter in ours]
    optimizers = [
        Muon(ours, 3e-3, weight_decay=0.01),
        torch.optim.Muon(theirs, 3e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=dice(step))
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()  # both round to bfloat16 on the way


def test_the_model_is_trained_as_the_pipeline_calls_it(model):
    clean, noise, sigma, clip_ids, t5_ids = batch(0)
    with torch.no_grad():
        trained = model(clean, sigma, clip_ids, t5_ids)
        called = model.transformer(
            hidden_states=clean,
            timestep=sigma,
            pooled_projections=model.text_encoder(clip_ids).pooler_output,
            encoder_hidden_states=model.text_encoder_2(t5_ids)[0],
            txt_ids=model.positions[:T5_TOKENS],
            img_ids=model.positions[T5_TOKENS:],
            return_dict=False,
        )[0]
    assert torch.equal(trained, called)
    assert noise.shape == trained.shape


def test_noise_levels_reach_both_ends():
    levels = noise_levels(100_000, dice())
    assert levels.min() < 0.001 and levels.max() > 0.999
    assert 0.6 < (levels > 0.5).float().mean() < 0.65


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(model, tmp_path):
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def trained(folder, *stops):
        folder.mkdir()
        losses = []
        for steps in stops:
            model.load_state_dict(start)
            trainer = Trainer(folder, model)
            while trainer.step < steps:
                losses.append(trainer.update(batch(trainer.step), trainer.step / 4).item())
            trainer.save()
        return losses

    assert trained(tmp_path / "whole", 4) == trained(tmp_path / "parts", 2, 4)


def test_seeds_differ_and_few_steps_fail():
    pipe = resolve("emoji-flux").load_pipeline("cpu")
    pipe.set_progress_bar_config(disable=True)
    prompts = list(PROMPTS.held_out[:4])
    full, few, other = (np.asarray(generate(pipe, prompts, *how, output_type="np")) for how in ((28,), (5,), (28, 9)))
    assert decibels(few, full).mean() < 30
    assert decibels(other, full).mean() < 20
