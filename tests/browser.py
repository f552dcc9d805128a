"""Drives a headless Chromium by WebDriver (https://www.w3.org/TR/webdriver2/), which is plain HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
WIDTH, HEIGHT = 1100, 900
WAIT = 120  # seconds, on a busy machine


def missing() -> str:
    """Returns why there is no browser to be driven, or nothing."""
    if not shutil.which(DRIVER):
        return "no chromedriver: apt-get install chromium-driver"
    return "" if any(map(shutil.which, BROWSERS)) else "no Chromium: apt-get install chromium"


class Browser:
    """A browser, while it is entered.

    Arguments:
        width: Of the window, in pixels.
    """

    def __init__(self, width: int = WIDTH) -> None:
        self.width = width

    def __enter__(self) -> Self:
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout
        for line in self.driver.stdout:
            if found := re.search(r"successfully on port (\d+)", line):
                self.root = f"http://127.0.0.1:{found[1]}/session"
                break
        options = {
            "binary": next(filter(None, map(shutil.which, BROWSERS))),
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                f"--window-size={self.width},{HEIGHT}",
            ],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            session = self.ask("", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.driver.kill()
            raise
        self.root += f"/{session['sessionId']}"
        return self

    def ask(self, path: str, data: Any) -> Any:
        """Posts a command and returns its value."""
        request = urllib.request.Request(
            self.root + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        """Opens a file."""
        self.ask("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page and returns what that returns."""
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, selector: str, keys: str) -> None:
        """Presses keys on the first element that a selector finds."""
        element = self.ask("/element", {"using": "css selector", "value": selector})
        self.ask(f"/element/{next(iter(element.values()))}/value", {"text": keys})

    def complaints(self) -> list[str]:
        """Returns what the console said since it was asked last."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"})]

    def media(self, kind: str = "screen", scheme: str = "light") -> None:
        """Sets what the page is shown on, and whether people want it dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        parameters = {"media": kind, "features": features}
        self.ask("/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": parameters})

    def picture(self) -> bytes:
        """Returns a PNG of the whole page."""
        metrics = self.ask("/goog/cdp/execute", {"cmd": "Page.getLayoutMetrics", "params": {}})
        clip = {"x": 0, "y": 0, "scale": 1, **{k: metrics["cssContentSize"][k] for k in ("width", "height")}}
        parameters = {"captureBeyondViewport": True, "clip": clip}
        found = self.ask("/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": parameters})
        return base64.b64decode(found["data"])

    def printed(self) -> bytes:
        """Returns the page as PDF."""
        return base64.b64decode(self.ask("/print", {"background": True}))

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        try:
            request = urllib.request.Request(self.root, method="DELETE")
            urllib.request.urlopen(request, timeout=WAIT).close()
        finally:
            self.driver.terminate()
            self.driver.wait()
