"""Prompt files: two parts that never mix, and one clear line for every bad file."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from adaptcache.presets import Preset, names
from adaptcache.presets.prompts import calibration_folder, read_prompts

EMBEDDED = sorted(path.stem for path in calibration_folder().glob("prompts/*.txt"))


def write(folder, text):
    path = folder / "mine.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_parts_share_no_prompt(name):
    prompts = read_prompts(name)
    calibration, held_out = (
        {" ".join(prompt.lower().split()) for prompt in part} for part in (prompts.calibration, prompts.held_out)
    )
    assert not calibration & held_out
    assert len(calibration) == len(prompts.calibration)
    assert len(held_out) == len(prompts.held_out)


@pytest.mark.parametrize(
    ("name", "calibration", "held_out"),
    [("emoji-32", 16, 32), ("general", 32, 64), ("video", 16, 16), ("audio", 12, 12)],
)
def test_embedded_parts_are_large_enough(name, calibration, held_out):
    prompts = read_prompts(name)
    assert len(prompts.calibration) >= calibration
    assert len(prompts.held_out) >= held_out


def test_emoji_prompts_use_no_emoji_in_both_parts():
    def emoji(part):
        return {prompt.split(" noto style ")[0] for prompt in part}

    prompts = read_prompts("emoji-32")
    assert not emoji(prompts.calibration) & emoji(prompts.held_out)
    assert len(emoji(prompts.held_out)) == 32


def test_emoji_prompts_are_captions_that_the_demo_model_knows():
    source = calibration_folder() / "demo" / "data.py"
    if not source.exists():
        pytest.skip("an installed package has no training code")
    backgrounds = source.read_text().split("BACKGROUNDS = {")[1].split("}")[0]
    colours = set(backgrounds.split('"')[1::2])
    prompts = read_prompts("emoji-32")
    for prompt in prompts.calibration + prompts.held_out:
        emoji, colour = prompt.removesuffix(" background").split(" noto style ")
        assert colour in colours
        assert emoji == emoji.lower().replace("-", " ")


def test_headings_decide_the_parts(tmp_path):
    path = write(tmp_path, "# mine\n[held-out]\n c \n\n[calibration]\na\n# no prompt\nb\r\n")
    prompts = read_prompts(path)
    assert prompts.calibration == ("a", "b")
    assert prompts.held_out == ("c",)
    assert prompts.name == "mine"


def test_every_third_prompt_of_a_plain_file_is_held_out(tmp_path):
    prompts = read_prompts(write(tmp_path, "a\nb\nc\nd\ne\nf\ng\n"))
    assert prompts.calibration == ("a", "c", "d", "f", "g")
    assert prompts.held_out == ("b", "e")


def test_two_plain_prompts_make_one_each(tmp_path):
    prompts = read_prompts(write(tmp_path, "a\nb"))
    assert (prompts.calibration, prompts.held_out) == (("a",), ("b",))


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    prompts = read_prompts(write(tmp_path, "\ufeffune été\nun hiver\n".encode()))
    assert prompts.calibration == ("une été",)


def test_digest_is_that_of_the_prompts_alone(tmp_path):
    digest = read_prompts(write(tmp_path, "[calibration]\na\n[held-out]\nb\n")).digest
    assert digest == hashlib.sha256(json.dumps([["a"], ["b"]]).encode()).hexdigest()
    same = read_prompts(write(tmp_path, "# why\n[held-out]\nb\n\n[calibration]\r\na\r\n"))
    assert same.digest == digest


def test_digest_tells_the_parts_apart(tmp_path):
    digest = read_prompts(write(tmp_path, "[calibration]\na\n[held-out]\nb\n")).digest
    swapped = read_prompts(write(tmp_path, "[calibration]\nb\n[held-out]\na\n")).digest
    assert swapped != digest


def test_a_file_in_the_working_directory_does_not_hide_an_embedded_one(tmp_path, monkeypatch):
    embedded = read_prompts("general")
    monkeypatch.chdir(tmp_path)
    Path("general").write_text("a\nb\n")
    assert read_prompts("general") == embedded
    assert read_prompts("./general").calibration == ("a",)


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "a\nb\n")
    assert read_prompts("~/mine.txt").held_out == ("b",)


def test_a_missing_file_names_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompt file generl; .* did you mean general"):
        read_prompts("generl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts; at least 2"),
        ("# only a comment\n\n", "has no prompts; at least 2"),
        ("[calibration]\n[held-out]\n", "has no prompts; at least 2"),
        ("one\n", "has 1 prompt; at least 2"),
        ("[calibration]\na\nb\n", r"no prompts under \[held-out\]; add"),
        ("[held-out]\na\nb\n", r"no prompts under \[calibration\]; add"),
        ("[calibration]\na cat\n[held-out]\nA  Cat\n", "line 4: the prompt of line 2 again"),
        ("a\nb\na\n", "line 3: the prompt of line 1 again; remove"),
        ("[training]\na\nb\n", r"line 1: unknown part \[training\]; .*\[calibration\]"),
        ("a\n[calibration]\nb\n[held-out]\nc\n", "'a' stands above the first heading; move"),
        (b"caf\xe9\nb\n", r"not UTF-8 text \(byte 3\); save it as UTF-8"),
        (b"a\0b\nc\n", "not a text file"),
        (b"a\n" * 600_000, "larger than 1 MB"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_a_prompt_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a prompt file: Is a directory"):
        read_prompts(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless file")
def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ValueError, match="larger than 1 MB"):
        read_prompts("/dev/zero")


@pytest.mark.parametrize("name", names())
def test_every_preset_has_its_prompts(name):
    assert Preset.load(name).prompts in EMBEDDED


def test_the_data_beside_an_installed_package_comes_first(tmp_path, monkeypatch):
    package = tmp_path / "site" / "adaptcache"
    monkeypatch.setattr("adaptcache.presets.prompts.__file__", str(package / "presets" / "prompts.py"))
    with pytest.raises(FileNotFoundError, match="install adaptcache-diffusers again"):
        calibration_folder()
    (tmp_path / "site" / "calibration" / "models").mkdir(parents=True)
    assert calibration_folder() == tmp_path / "site" / "calibration"
    (package / "calibration" / "models").mkdir(parents=True)
    assert calibration_folder() == package / "calibration"
