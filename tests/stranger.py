"""A stranger's path: from a bare ComfyUI to a faster workflow, with what docs/comfyui.md prints and nothing else.

    COMFYUI_PATH=folder python -m tests.stranger

Copies that ComfyUI, without what was put into it, makes it a virtual environment with its own requirements, runs the
commands of the page, starts the server on this machine, and opens the workflows in a headless Chromium, which queues
them. The demo model stands in for the checkpoints that the other workflows name.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from .browser import Browser

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "comfyui.md"
FLOWS = ROOT / "comfyui" / "example_workflows"
BARE = shutil.ignore_patterns("adaptcache*", ".git", "user", "output", "temp", "input", "__pycache__")
LOADED = {"MODEL": 0, "CLIP": 1, "VAE": 2, "LATENT": 3}  # what the demo model gives
FIT = """
const c = window.app.canvas, g = window.app.graph._nodes, b = [1e9, 1e9, -1e9, -1e9];
for (const n of g) {
  const s = n.computeSize ? n.computeSize() : n.size;
  n.setSize([Math.max(n.size[0], s[0]), Math.max(n.size[1], s[1])]);
  b[0] = Math.min(b[0], n.pos[0]); b[1] = Math.min(b[1], n.pos[1] - 40);
  b[2] = Math.max(b[2], n.pos[0] + n.size[0]); b[3] = Math.max(b[3], n.pos[1] + n.size[1]);
}
const s = Math.min(1640 / (b[2] - b[0]), 600 / (b[3] - b[1]), 1);
c.ds.scale = s; c.ds.offset[0] = 90 / s - b[0]; c.ds.offset[1] = 90 / s - b[1]; c.setDirty(true, true);
document.querySelectorAll('.p-dialog-mask, .p-toast, .minimap-main-container').forEach(e => e.remove());
"""


def commands(place: Path) -> list[str]:
    """Returns what the page has one type, for a ComfyUI in `place`."""
    section = PAGE.read_text(encoding="utf-8").split("## From an empty ComfyUI")[1].split("\n## ")[0]
    lines = re.findall(r"^ {8}(\S.*)$", section, re.M)
    assert len(lines) >= 3, lines
    return [line.replace("/path/to/adaptcache", str(ROOT)).replace("/path/to/ComfyUI", str(place)) for line in lines]


class Server:
    """A ComfyUI on this machine, while it is entered."""

    def __init__(self, start: str, place: Path, environment: dict[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start, self.place, self.environment = start, place, environment

    def __enter__(self) -> Server:
        self.log = (self.place / "server.log").open("w")
        self.process = subprocess.Popen(
            [*self.start.split(), "--cpu", "--port", str(self.port), "--disable-auto-launch"],
            cwd=self.place, env=self.environment, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        for _ in range(300):
            assert self.process.poll() is None, (self.place / "server.log").read_text()[-3000:]
            try:
                self.ask("/queue")
                return self
            except OSError:
                time.sleep(1)
        raise TimeoutError("the server does not answer")

    def ask(self, path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def last(self, known: set[str], patience: int = 1200) -> dict[str, Any]:
        """Returns what the run gave that began last, once it has ended."""
        for _ in range(2 * patience):
            for name, found in self.ask("/history").items():
                if name not in known and found["status"]["completed"] is not None:
                    known.add(name)
                    return dict(found)
            time.sleep(0.5)
        raise TimeoutError("the workflow does not end")

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def texts_of(found: dict[str, Any]) -> list[str]:
    """Returns the texts that the nodes of a run show.

    Raises:
        RuntimeError: It failed.
    """
    for kind, message in found["status"]["messages"]:
        if kind == "execution_error":
            raise RuntimeError(f"{message['node_type']}: {message['exception_message']}")
    assert found["status"]["status_str"] == "success", found["status"]
    return [text for output in found["outputs"].values() for text in output.get("text", ())]


def seconds_of(found: dict[str, Any]) -> float:
    """Returns how long a run took."""
    times = {kind: message["timestamp"] for kind, message in found["status"]["messages"]}
    return float(times["execution_success"] - times["execution_start"]) / 1000


def with_demo(flow: dict[str, Any]) -> dict[str, Any]:
    """Returns a workflow in which the demo model stands in for the checkpoints, and its schedule for theirs."""
    kinds = ("UNETLoader", "DualCLIPLoader", "VAELoader", "EmptySD3LatentImage", "CheckpointLoaderSimple")
    gone = {node["id"] for node in flow["nodes"] if node["type"] in kinds}
    outputs = [{"name": name, "type": name, "links": []} for name in LOADED]
    demo = {
        "id": 99, "type": "AdaptcacheDemoModel", "pos": [0, 0], "size": [300, 150], "flags": {}, "order": 0,
        "mode": 0, "inputs": [], "outputs": outputs, "properties": {}, "widgets_values": ["emoji-flux"],
    }  # fmt: skip
    for link in flow["links"]:
        if link[1] in gone:
            link[1:3] = 99, LOADED[link[5]]
            outputs[link[2]]["links"].append(link[0])  # type: ignore[attr-defined]
    flow["nodes"] = [demo, *(node for node in flow["nodes"] if node["id"] not in gone)]
    for node in flow["nodes"]:
        if node["type"] == "AdaptcacheLoadSchedule":
            node["widgets_values"] = ["demo.json"]
        node["widgets_values"] = [1.0 if value == 4.5 else value for value in node["widgets_values"]]  # cfg
    return flow


class Page:
    """ComfyUI in a browser."""

    def __init__(self, browser: Browser, server: Server, pictures: Path | None) -> None:
        self.browser, self.server, self.pictures, self.known = browser, server, pictures, set[str]()
        browser.ask("/url", {"url": f"http://127.0.0.1:{server.port}"})
        for _ in range(120):
            time.sleep(1)
            if browser.run("return !!(window.app && window.app.graph && document.querySelector('canvas'))"):
                break
        time.sleep(8)

    def open(self, flow: dict[str, Any]) -> None:
        self.browser.run("window.app.loadGraphData(arguments[0]);", flow)
        time.sleep(4)
        self.browser.run(FIT)

    def set_widget(self, kind: str, name: str, value: Any) -> None:
        script = """for (const n of window.app.graph._nodes) if (n.type == arguments[0])
            for (const w of n.widgets) if (w.name == arguments[1]) w.value = arguments[2];"""
        self.browser.run(script, kind, name, value)

    def mode(self, kind: str, mode: int) -> None:
        """Sets nodes to run (0), muted (2) or bypassed (4), as the menu of a node does."""
        script = "for (const n of window.app.graph._nodes) if (n.type == arguments[0]) n.mode = arguments[1];"
        self.browser.run(script, kind, mode)

    def queue(self, cancel_after: float = 0) -> dict[str, Any]:
        self.browser.run("window.app.queuePrompt(0, 1);")
        if cancel_after:
            time.sleep(cancel_after)
            self.server.ask("/interrupt", b"{}")
        return self.server.last(self.known)

    def picture(self, name: str) -> None:
        if self.pictures:
            time.sleep(3)
            self.browser.run(FIT)
            time.sleep(2)
            picture = Image.open(io.BytesIO(self.browser.picture())).convert("RGB")
            picture.save(self.pictures / f"{name}.jpg", quality=85)


def walk(page: Page, place: Path) -> None:
    """Runs the workflows and says what they gave."""
    shipped = page.server.ask("/workflow_templates")["adaptcache"]
    assert sorted(shipped) == sorted(path.stem for path in FLOWS.glob("*.json")), shipped
    page.open(page.server.ask("/api/workflow_templates/adaptcache/demo.json"))
    found = page.queue()
    print("demo:", *texts_of(found), sep="\n", flush=True)
    said = "\n".join(texts_of(found))
    assert "10 denoiser calls made, 18 skipped (calibrated)" in said and "saved as demo.json" in said
    ours, plain = re.findall(r"steps computed, ([\d.]+) dB \(calibrated\); \d+ plain steps ([\d.]+) dB", said)[0]
    assert float(ours) > float(plain)
    assert list((place / "output").glob("adaptcache_*.png"))
    page.picture("demo")
    seconds: dict[str, list[float]] = {"by the schedule": [], "all steps": []}
    for turn in range(4):
        plain_run = turn % 2
        page.mode("AdaptcacheApplySchedule", 4 if plain_run else 0)
        page.mode("AdaptcacheReport", 2 if plain_run else 0)
        page.set_widget("KSampler", "seed", 200 + turn)
        found = page.queue()
        texts_of(found)
        seconds[list(seconds)[plain_run]].append(seconds_of(found))
    fast, slow = (min(values) for values in seconds.values())
    print(f"the KSampler's part of it: {slow:.2f} s with all steps, {fast:.2f} s by the schedule", flush=True)
    assert fast < slow
    page.set_widget("AdaptcacheCalibrate", "seed", 77)
    assert "execution_interrupted" in {kind for kind, _ in page.queue(cancel_after=4)["status"]["messages"]}
    page.set_widget("AdaptcacheCalibrate", "seed", 0)
    page.mode("AdaptcacheApplySchedule", 0)
    page.mode("AdaptcacheReport", 0)
    assert "(calibrated)" in "".join(texts_of(page.queue()))
    print("a calibration that was cancelled left the model as it was", flush=True)
    for path in sorted(FLOWS.glob("*.json")):
        if path.stem != "demo":
            page.open(with_demo(json.loads(path.read_text(encoding="utf-8"))))
            print(f"\n{path.stem}, with the demo model:", *texts_of(page.queue()), sep="\n", flush=True)


def main() -> None:
    """Walks the path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, help="where to put it; a folder that is deleted in the end by default")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the workflows")
    given = parser.parse_args()
    source = os.environ.get("COMFYUI_PATH")
    if not source:
        sys.exit("COMFYUI_PATH names no ComfyUI: COMFYUI_PATH=folder python -m tests.stranger")
    with tempfile.TemporaryDirectory() as folder:
        home = given.place or Path(folder)
        place, python = home / "ComfyUI", home / "venv" / "bin" / "python"
        if not place.exists():
            shutil.copytree(source, place, ignore=BARE)
            subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", place / "requirements.txt"], check=True)
        environment = {
            **os.environ,
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(home / "venv"),
        }
        environment.pop("PYTHONPATH", None)
        *before, start = commands(place)
        for line in before:
            print("$", line, flush=True)
            subprocess.run(line, shell=True, check=True, env=environment, cwd=home)
        print("$", start, flush=True)
        with Server(start, place, environment) as server, Browser(1800) as browser:
            walk(Page(browser, server, given.pictures), place)


if __name__ == "__main__":
    main()
