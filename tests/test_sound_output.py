"""Sound as output: drawn as spectrograms, written as WAV, played in reports."""

from __future__ import annotations

import base64
import io
import wave

import numpy as np
import pytest
from test_compare_table import FULL, OURS

from adaptcache.cli.compare import write_folder
from adaptcache.comparison.compare import Comparison
from adaptcache.report.page import LONGEST, read_comparison
from adaptcache.report.picture import SPECTRUM, save_output, spectrogram

RATE = LENGTH = 4096


def test_a_spectrogram_shows_high_notes_above_low_ones():
    u = np.arange(LENGTH) / RATE
    low, high = (spectrogram(np.sin(2 * np.pi * hertz * u)[None]) for hertz in (200, 1500))
    assert low.shape == (*SPECTRUM[::-1], 3) and 0 <= low.min() and low.max() <= 1
    rows = [int(image[..., 0].mean(axis=1).argmax()) for image in (low, high)]
    assert rows[0] > 80 and rows[1] < 35
    assert spectrogram(np.zeros((2, LENGTH))).max() == 0


def test_sound_is_written_as_a_wave_file(tmp_path):
    sound = np.stack([np.linspace(-1, 1, 9), np.full(9, 2.0)])  # the second channel is too loud
    with wave.open(str(save_output(sound, tmp_path / "a.wav", 8000)), "rb") as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 9)
        values = np.frombuffer(file.readframes(9), "<i2").reshape(9, 2)
    assert values[[0, 4, 8], 0].tolist() == [-32767, 0, 32767] and (values[:, 1] == 32767).all()
    with pytest.raises(ValueError, match="is no sound; use an ending such as"):
        save_output(np.zeros((4, 4, 3)), tmp_path / "b.wav")


def test_a_report_plays_the_sounds_of_a_comparison(tmp_path):
    made = {name: [0.5 * np.ones((1, 64)), np.zeros((1, 64))] for name in ("full run", "adaptcache 0.5")}
    result = Comparison(8, 2, 1, [FULL, OURS], [], {}, made, {})
    write_folder(tmp_path, result, {**result.data(), "measure": ""}, ["a", "b"], "tiny", RATE)
    shown = read_comparison(tmp_path, 4)["rows"][1]  # the worst prompt, b, comes first
    kind, data = shown["sound"].split(",")
    assert kind == "data:audio/wav;base64" and shown["prompt"] == "a"
    with wave.open(io.BytesIO(base64.b64decode(data)), "rb") as file:
        assert file.getframerate() == RATE and set(np.frombuffer(file.readframes(64), "<i2")) == {16384}
    (label, picture, sound), *_ = shown["ours"]
    assert label == "adaptcache 0.5" and picture[:10] == "data:image" and sound == shown["sound"]
    next(tmp_path.glob("images/00-*.wav")).write_bytes(bytes(LONGEST + 1))
    assert "" in [row["sound"] for row in read_comparison(tmp_path, 4)["rows"]]  # too long for a page


def test_images_are_not_written_as_sound(monkeypatch, capsys, tmp_path):
    pytest.importorskip("transformers")
    from adaptcache.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["adaptcache", "generate", "-p", "x", "--out", "a.wav"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and "emoji-flux makes no sound" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
