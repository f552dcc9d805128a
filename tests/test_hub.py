"""The hub: what is pushed comes back the same, from a stand-in that speaks its HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from conftest import STEPS
from hub_stand_in import Hub, serving
from huggingface_hub import ModelCard, constants, errors
from matplotlib.colors import to_rgba
from PIL import Image
from test_export import kernel, schedule

import adaptcache
from adaptcache.engines.serving import load_schedules
from adaptcache.errors import ScheduleError
from adaptcache.files import dump_json
from adaptcache.hub import CONFIG, HubError
from adaptcache.hub.card import END, build_card, build_plot
from adaptcache.schedule.format import Evidence
from adaptcache.schedule.schedule import Schedule

REPO = "user/emoji-schedules"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        huggingface_hub.close_session()  # it remembers whether it is offline
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def fitted() -> Schedule:
    seen = Evidence(prompts="32 held-out", n=32, calls=(3, 9), psnr={"mean": 41.25, "p05": 37.5}, speed=3.0)
    made = {"pipeline": "FluxPipeline", "dtype": "bfloat16", "call": {"guidance_scale": 3.5}}
    one = schedule([0, 2, 5], kernel())
    denoiser = one.denoiser.model_copy(update={"checkpoint": "black-forest-labs/FLUX.1-dev"})
    return one.model_copy(update={"denoiser": denoiser, "evidence": seen, "made": made})


# Folders


def test_a_saved_folder_gives_the_same_schedule_and_the_same_bytes(fitted: Schedule, tmp_path: Path) -> None:
    path = fitted.save_pretrained(tmp_path / "a")
    assert path == tmp_path / "a" / "adaptcache_config.json"
    loaded = Schedule.from_pretrained(tmp_path / "a")
    again = loaded.save_pretrained(tmp_path / "b")
    assert again.read_bytes() == path.read_bytes() == fitted.save(tmp_path / "c.json").read_bytes()
    assert Schedule.from_pretrained(path) == loaded == Schedule.load(path)


def test_a_file_that_is_not_there_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"cannot read .*none.json: No such file"):
        Schedule.from_pretrained(tmp_path / "none.json")
    with pytest.raises(ScheduleError, match=r"easycache is a method, no file: Schedule.of\('easycache'\)"):
        Schedule.from_pretrained("easycache")
    with pytest.raises(ScheduleError, match=r"cannot read .*v@1.json: No such file"):
        load_schedules(str(tmp_path / "v@1.json"))


def test_a_folder_holds_several_schedules_and_one_card(fitted: Schedule, tmp_path: Path) -> None:
    fast = fitted.model_copy(update={"name": "fast one", "evidence": None})
    fitted.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path, name="fast")
    assert Schedule.from_pretrained(tmp_path).name == "test"
    assert Schedule.from_pretrained(tmp_path, "fast").name == "fast one"
    assert Schedule.from_pretrained(tmp_path.parent, subfolder=tmp_path.name, name="fast").name == "fast one"
    text = (tmp_path / "README.md").read_text()
    assert "| (default) | 9 | 3 | 41.2 dB | 37.5 dB |  | 32 held-out |" in text
    assert "| `fast` | 9 |  | not measured |  |  |" in text


def test_what_is_missing_in_a_folder_names_what_there_is(fitted: Schedule, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"has no adaptcache_config.json; it holds no schedules"):
        Schedule.from_pretrained(tmp_path)
    fitted.save_pretrained(tmp_path, name="fast")
    with pytest.raises(HubError, match=r"has no slow/adaptcache_config.json; it has fast/adaptcache_config"):
        Schedule.from_pretrained(tmp_path, name="slow")
    for name in ("../up", "/etc"):
        with pytest.raises(ValueError, match="leads out of the folder"):
            fitted.save_pretrained(tmp_path, name=name)


# The card


def test_a_broken_neighbour_is_named_before_anything_is_written(fitted: Schedule, tmp_path: Path) -> None:
    path = fitted.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(b"caf\xe9")
    for file in (tmp_path / "README.md", tmp_path / "old" / CONFIG):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"caf\xe9")
        with pytest.raises(ValueError, match=file.name):
            fitted.model_copy(update={"name": "other"}).save_pretrained(tmp_path)
        file.unlink()
        assert Schedule.load(path).name == "test"


def test_what_is_there_is_not_asked_of_the_hub_and_no_disk_is_walked(fitted: Schedule, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ScheduleError, match="not a regular file"):
        Schedule.from_pretrained(tmp_path / "pipe")
    fitted.save(tmp_path / "a" / "b" / "c" / CONFIG)
    with pytest.raises(HubError, match="holds no schedules"):
        Schedule.from_pretrained(tmp_path)
    with pytest.raises(HubError, match="it has b/c/"):
        Schedule.from_pretrained(tmp_path / "a")


def test_the_card_says_what_the_hub_needs_to_know(fitted: Schedule, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "adaptcache"
    assert data.base_model == ["black-forest-labs/FLUX.1-dev"]
    assert set(data.tags) == {"adaptcache", "diffusers", "caching", "FluxTransformer2DModel"}
    text = (tmp_path / "README.md").read_text()
    assert "guidance_scale=3.5" in text and "num_inference_steps=9" in text


def test_the_card_shows_a_plot_with_a_strip_for_each_schedule(fitted: Schedule, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path)
    assert "](plot.png)" in (tmp_path / "README.md").read_text()
    assert Image.open(tmp_path / "plot.png").width == 900
    unmeasured = fitted.model_copy(update={"evidence": None})
    adaptive = unmeasured.model_copy(update={"rules": Schedule.of("teacache", model="flux").rules})
    chart, strips = build_plot({"": fitted, "fast": unmeasured, "teacache": adaptive}).axes
    assert [text.get_text() for text in chart.texts] == ["default"]  # the only one that was measured
    blue = to_rgba("C0")
    filled = [[cell.get_facecolor() == blue for cell in row] for row in strips.containers]
    assert filled == [[i in (0, 2, 5) for i in range(9)]] * 2
    assert [text.get_text() for text in strips.texts] == ["decides as it runs (polynomial)"]
    assert len(build_plot({"": unmeasured}).axes) == 1


def test_without_matplotlib_the_card_has_no_plot(fitted: Schedule, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fitted.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "41.2 dB" in text and "plot.png" not in text and not (tmp_path / "plot.png").exists()


def test_identical_images_are_exact(fitted: Schedule) -> None:
    evidence = fitted.evidence.model_copy(update={"psnr": {"mean": 100.0, "p05": 99.0}})
    text = build_card({"": fitted.model_copy(update={"evidence": evidence})}, REPO)
    assert "| exact | 99.0 dB |" in text and "100.0" not in text


def test_a_folder_is_no_base_model_and_a_name_breaks_no_table(fitted: Schedule) -> None:
    denoiser = fitted.denoiser.model_copy(update={"checkpoint": "/home/me/flux"})
    bad = fitted.model_copy(update={"denoiser": denoiser, "name": "a|b\n# c"})
    text = build_card({"": bad}, REPO)
    assert "base_model" not in text
    assert "# a/b # c\n" in text


def test_what_people_wrote_around_the_generated_part_stays(fitted: Schedule, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("---\n<!--", "---\nMine.\n<!--") + "\nThanks to my cat.\n")
    fitted.save_pretrained(tmp_path, name="other")
    text = path.read_text()
    assert "\nMine.\n" in text and text.endswith(f"{END}\n\nThanks to my cat.\n") and "`other`" in text
    path.write_text("All mine.\n")
    fitted.save_pretrained(tmp_path)
    assert path.read_text() == "All mine.\n"


# The hub


def test_what_is_pushed_is_loaded_elsewhere_with_the_same_bytes(hub: Hub, fitted: Schedule, tmp_path: Path) -> None:
    address = fitted.push_to_hub(REPO, token=hub.token)
    assert address.endswith(f"/{REPO}/commit/{hub.sha(REPO)}")
    assert hub.messages == ["Upload test with adaptcache"]
    assert set(hub.repos[REPO][-1]) == {CONFIG, "README.md", "plot.png"}
    assert hub.repos[REPO][-1][CONFIG] == fitted.save(tmp_path / "x.json").read_bytes()
    assert Schedule.from_pretrained(REPO) == Schedule.load(tmp_path / "x.json")


def test_a_second_schedule_joins_the_first_on_one_card(hub: Hub, fitted: Schedule) -> None:
    fitted.push_to_hub(REPO, token=hub.token)
    fitted.model_copy(update={"name": "fast one"}).push_to_hub(REPO, name="fast", token=hub.token)
    assert set(hub.repos[REPO][-1]) == {CONFIG, f"fast/{CONFIG}", "README.md", "plot.png"}
    assert Schedule.from_pretrained(REPO, "fast").name == "fast one"
    text = hub.repos[REPO][-1]["README.md"].decode()
    assert "(default)" in text and "`fast`" in text


def test_a_commit_pins_a_schedule(hub: Hub, fitted: Schedule) -> None:
    fitted.push_to_hub(REPO, token=hub.token)
    pinned = hub.sha(REPO)
    fitted.model_copy(update={"name": "newer"}).push_to_hub(REPO, token=hub.token)
    assert Schedule.from_pretrained(REPO).name == "newer"
    assert Schedule.from_pretrained(REPO, revision=pinned).name == "test"


def test_a_download_serves_without_the_hub(hub: Hub, fitted: Schedule, monkeypatch) -> None:
    fitted.push_to_hub(REPO, token=hub.token)
    first = Schedule.from_pretrained(REPO)
    asked = len(hub.requests)
    assert Schedule.from_pretrained(REPO, local_files_only=True) == first
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Schedule.from_pretrained(REPO) == first
    assert len(hub.requests) == asked
    with pytest.raises(HubError, match=r"fast/adaptcache_config.json of user/emoji-schedules is not on this"):
        Schedule.from_pretrained(REPO, "fast")


def test_a_download_can_be_kept_elsewhere(hub: Hub, fitted: Schedule, tmp_path: Path) -> None:
    fitted.push_to_hub(REPO, token=hub.token)
    Schedule.from_pretrained(REPO, cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob(CONFIG))
    assert not list((tmp_path / "cache").rglob(CONFIG))


def test_schedules_in_a_subfolder_of_a_repository_of_weights_are_found(hub: Hub, fitted: Schedule) -> None:
    one, fast = f"schedules/{CONFIG}", f"schedules/fast/{CONFIG}"
    text = dump_json(fitted.model_dump(by_alias=True, exclude_none=True))
    quick = fitted.model_copy(update={"name": "quick"}).model_dump(by_alias=True, exclude_none=True)
    hub.repos["user/weights"] = [{"model_index.json": b"{}", one: text, fast: dump_json(quick)}]
    assert Schedule.from_pretrained("user/weights", subfolder="schedules").name == "test"
    assert Schedule.from_pretrained("user/weights", "fast", subfolder="schedules").name == "quick"
    with pytest.raises(HubError, match=r"no adaptcache_config.json; it has schedules/adaptcache_config"):
        Schedule.from_pretrained("user/weights")


def test_a_private_repository_needs_the_token(hub: Hub, fitted: Schedule, tmp_path: Path) -> None:
    fitted.push_to_hub(REPO, token=hub.token, private=True)
    assert Schedule.from_pretrained(REPO, token=hub.token).name == "test"
    with pytest.raises(HubError, match=r"the hub has no user/emoji-schedules, or it is private; .*hf auth"):
        Schedule.from_pretrained(REPO, cache_dir=tmp_path / "of another user")


def test_each_failure_of_the_hub_is_one_clear_line(hub: Hub, fitted: Schedule) -> None:
    fitted.push_to_hub(REPO, name="fast", token=hub.token)
    hub.repos["user/secret"] = [{CONFIG: b"{}"}]
    hub.gated.add("user/secret")
    hub.repos["user/wrong"] = [{CONFIG: b'{"_class_name": "FluxTransformer2DModel"}'}]
    hub.repos["user/empty"] = [{"model_index.json": b"{}"}]

    def refused(source: str, message: str, kind: type[Exception] = HubError, **options: str) -> None:
        with pytest.raises(kind, match=message) as caught:
            Schedule.from_pretrained(source, **options)
        assert "\n" not in str(caught.value)

    refused("user/nothing", r"the hub has no user/nothing, or it is private; check the name, or log in")
    refused("user/secret", r"user/secret is gated; request access .*hf auth login")
    refused(REPO, r"has no such revision: user/emoji-schedules@v9", name="fast", revision="v9")
    refused(REPO, r"has no adaptcache_config.json; it has fast/adaptcache_config.json: choose with name=")
    refused("user/empty", r"user/empty has no adaptcache_config.json; it holds no schedules")
    refused("user/wrong", r"is not a schedule: it has no 'rules'", ScheduleError)
    refused("a/b/c", r"'a/b/c' is neither a folder, a file nor a repository")
    with pytest.raises(HubError, match=r"log in: hf auth login"):
        fitted.push_to_hub(REPO, token="hf_wrong")


@pytest.mark.parametrize("kind", [errors.LocalEntryNotFoundError, errors.HfHubHTTPError.__bases__[0]])
def test_a_hub_that_is_not_reached_is_one_clear_line(kind: type[Exception], monkeypatch) -> None:
    def fail(*_: Any, **__: Any) -> None:  # connecting in earnest would take all the retries
        raise kind("timed\nout")

    monkeypatch.setattr("adaptcache.hub.hf_hub_download", fail)
    with pytest.raises(HubError, match=r"the hub cannot be reached") as caught:
        Schedule.from_pretrained(REPO)
    assert "\n" not in str(caught.value) and REPO in str(caught.value)


def test_pushing_offline_says_so(hub: Hub, fitted: Schedule, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match=r"user/emoji-schedules is not on this machine|cannot be reached"):
        fitted.push_to_hub(REPO, token=hub.token)


def test_a_loaded_schedule_attaches(hub: Hub, pipe, prompts) -> None:
    from conftest import CALL, schedule_of

    schedule_of(pipe, [0, 1, 4]).push_to_hub(REPO, token=hub.token)
    with adaptcache.attach(pipe, Schedule.from_pretrained(REPO)) as handle:
        CALL(pipe, prompts[:1])
    assert handle.report().computed == [0, 1, 4]
    assert len(handle.report().calls) == STEPS
