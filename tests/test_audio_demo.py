"""The sound demo: its sounds, its latents, how its training resumes, and sound on the command line."""

from __future__ import annotations

import json
import wave

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from adaptcache.evaluation.evaluate import evaluate_schedules
from adaptcache.presets import resolve
from adaptcache.presets.prompts import calibration_folder, read_prompts
from adaptcache.report.picture import SPECTRUM
from adaptcache.runs import PromptSet
from adaptcache.schedule.schedule import Schedule
from calibration.demo.train import Trainer
from calibration.demo.vae import encode
from calibration.demo_audio.batches import BATCH, Captioned
from calibration.demo_audio.model import TextToSound, build_tokenizer
from calibration.demo_audio.sheet import NEAR, cents
from calibration.demo_audio.sounds import (
    INSTRUMENTS,
    LENGTH,
    NOTES,
    OCTAVES,
    RATE,
    WAYS,
    Scenes,
    caption,
    play,
)
from calibration.demo_audio.vae import CHANNELS, build_vae, level
from tests.calls import Call

MODEL = "tones"
WEIGHTS = calibration_folder() / "demo" / "tones"


def scenes_of(way: str, instrument: str = "flute", n: int = 3) -> Scenes:
    zeros = torch.zeros(n, dtype=torch.long)
    chance = torch.rand(n, 2, generator=torch.Generator().manual_seed(3))
    known = (list(INSTRUMENTS).index(instrument), 1, 5, list(WAYS).index(way))
    return Scenes(*(zeros + k for k in known), chance)


def loudness(sounds: torch.Tensor, parts: int) -> torch.Tensor:
    """Returns how loud each part of the second is, with shape (n, parts)."""
    return sounds.view(len(sounds), parts, -1).square().mean(dim=-1).sqrt()


def test_every_way_of_playing_does_what_its_caption_says():
    assert (loudness(play(scenes_of("swelling")), 8).diff(dim=1)[:, :-1] > 0).all()
    twice = loudness(play(scenes_of("twice")), 16)
    assert (twice[:, 7] < 1e-3).all() and (twice[:, [2, 10]] > 0.1).all()
    trembling = loudness(play(scenes_of("trembling")), 64)
    assert trembling[0].max() > 3 * trembling[0][4:-4].min()
    guitar = loudness(play(scenes_of("held", "guitar")), 4)
    assert (guitar.diff(dim=1) < 0).all()  # a plucked string fades
    start, end = (play(scenes_of("rising"))[0, 0, part] for part in (slice(512), slice(-768, -256)))
    ratio = [int(torch.fft.rfft(part, 8 * RATE).abs().argmax()) for part in (start, end)]
    assert 1.35 < ratio[1] / ratio[0] < 1.6


@pytest.mark.parametrize("way", WAYS)
def test_sounds_are_in_tune_and_within_full_scale(way):
    scenes = Scenes.draw(64, torch.Generator().manual_seed(1))
    scenes = Scenes(scenes.instruments, scenes.octaves, scenes.notes, scenes.ways * 0 + list(WAYS).index(way),
                    scenes.chance)  # fmt: skip
    sounds = play(scenes)
    assert sounds.shape == (64, 1, LENGTH) and 0.5 < sounds.abs().amax() <= 0.8
    off = [cents(sound, words) for sound, words in zip(sounds, scenes.captions(), strict=True)]
    assert max(off) < NEAR
    other = {"c": "f", "d": "g", "e": "a", "f": "b", "g": "c", "a": "d", "b": "e"}
    wrong = [words.split() for words in scenes.captions()]
    wrong = [f"{i} playing {o} {other[n]} {w}" for i, _, o, n, w in wrong]
    assert min(cents(sound, words) for sound, words in zip(sounds, wrong, strict=True)) > NEAR


def test_two_sounds_of_one_caption_differ_and_scenes_are_drawn_again_alike():
    assert not torch.equal(*play(scenes_of("held"))[:2])
    a, b = (Scenes.draw(7, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.captions() == b.captions() and torch.equal(play(a), play(b))


def test_the_prompts_are_captions_and_none_stands_in_both_parts():
    prompts = read_prompts(MODEL)
    known = {caption(i, o, n, w) for i in INSTRUMENTS for o in OCTAVES for n in NOTES for w in WAYS}
    fitted, held_out = set(prompts.calibration), set(prompts.held_out)
    assert len(fitted) == 16 and len(held_out) == 24 and not fitted & held_out
    assert fitted | held_out <= known


def test_levelled_latents_have_unit_variance_and_decode_to_the_same():
    torch.manual_seed(0)
    vae, sounds = build_vae().eval(), play(Scenes.draw(8, torch.Generator().manual_seed(2)))
    latents = encode(vae, sounds)
    with torch.no_grad():
        before = vae.decode(latents).sample
        level(vae, latents.std(dim=(0, 2)))
        after = vae.decode(encode(vae, sounds)).sample
    assert latents.shape == (8, CHANNELS, LENGTH // 64)
    assert torch.allclose(encode(vae, sounds).std(dim=(0, 2)), torch.ones(CHANNELS), atol=1e-3)
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped(tmp_path):
    def trainer(folder: str) -> Trainer:
        torch.manual_seed(0)
        (tmp_path / folder).mkdir(exist_ok=True)
        return Trainer(tmp_path / folder, TextToSound(build_tokenizer()))

    shown = Captioned(torch.randn(BATCH, CHANNELS, LENGTH // 64), torch.randint(1, 60, (BATCH, 16)).clamp(max=40))
    whole, part = trainer("whole"), trainer("part")
    losses = [whole.update(shown.batch(step), step / 4).item() for step in range(4)]
    for step in range(2):
        part.update(shown.batch(step), step / 4)
    part.save()
    again = trainer("part")
    assert again.step == 2
    assert [again.update(shown.batch(step), step / 4).item() for step in (2, 3)] == pytest.approx(losses[2:], rel=1e-5)


def test_the_sound_demo_model_is_small_and_whole():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 20e6
    assert "_name_or_path" not in "".join(path.read_text() for path in WEIGHTS.glob("*/config.json"))


def test_sounds_are_calibrated_and_generated_on_the_command_line(monkeypatch, capsys, tmp_path):
    from adaptcache.cli import main

    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["adaptcache", *words, "--model", MODEL, "--steps", "9"])
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or 0) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    monkeypatch.chdir(tmp_path)
    run("calibrate", "--speed", "1.5", "--fit-on", "4", "--eval-on", "2", "--no-cache", "--out", "made.json")
    rule = json.loads((tmp_path / "made.json").read_text())["rules"][0]
    assert rule["forecast"]["features"] == ["past_x", "past_c", "x", "x0"]  # Stable Audio's sampler adds noise
    asked = ("-s", "made.json", "-p", "flute playing low g held")
    worth = json.loads(run("generate", *asked, "--compare", "--json", "--out", "compared.png"))
    assert worth["calls"] == 6 and worth["psnr"] < 100  # how near is another test's question
    with Image.open(tmp_path / "compared.png") as sheet:
        assert sheet.size[0] > 3 * SPECTRUM[0]
    run("generate", *asked, "--out", "note.wav")
    with wave.open(str(tmp_path / "note.wav"), "rb") as file:
        assert (file.getframerate(), file.getnframes()) == (RATE, LENGTH)
    assert "draws a picture, of sound too" in run("generate", *asked, "--compare", "--out", "n.wav", code=2)


@pytest.mark.slow
def test_the_schedule_that_ships_is_as_near_as_it_says():
    preset, known = resolve(MODEL), read_prompts(MODEL)
    schedule = Schedule.load(calibration_folder().parent / "schedules" / "tones-50-2x.json")
    call, held_out = Call(preset.steps, preset.call), known.held_out[:8]
    (_, ours, fewer), made = evaluate_schedules(
        call.of(preset.load_pipeline("cpu"), batch_size=8),
        PromptSet.of(held_out, len(known.calibration)),
        [schedule],
    )
    assert ours.calls == fewer.calls == 25 and made[1].images[0].shape == (1, LENGTH)
    assert ours.psnr["mean"] > 20
