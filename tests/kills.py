"""`python -m tests.kills [times]`: kills a calibration on its way, again and again.

Each time a process calibrates where the last one was killed, and gets SIGKILL in the middle of one of its
next writes. At last one is let to its end, and its files are compared with those of one nobody killed.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.processes import launch


def calibrated(folder: str, left: int) -> bytes:
    """Calibrates; is killed in the middle of write number `left`, if that is above 0."""
    import os
    import signal

    import adaptcache
    from adaptcache import cache as parts
    from adaptcache import profile
    from adaptcache.cache import Cache
    from tests.conftest import CALL, STEPS, embedded, tiny_flux

    write, count = parts.write_atomically, iter(range(1, 10**6))

    def killed(path: Path, content: bytes) -> Path:
        if next(count) == left:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name("." + path.name + ".half").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    parts.write_atomically = profile.write_atomically = killed
    schedule = adaptcache.calibrate(
        tiny_flux(), embedded(40), num_inference_steps=STEPS, budget=0.5,
        pipe_kwargs=dict(CALL.arguments), batch_size=1, cache=Cache(folder),
    )  # fmt: skip
    return schedule.save(Path(folder) / "s.json").read_bytes()


def kills(times: int, folder: Path, seed: int = 0) -> tuple[int, bool]:
    """Returns how many processes were killed, and whether the result is that of an undisturbed one."""
    rng, survived = random.Random(seed), 0
    for _ in range(times):
        found = launch(calibrated, 1, str(folder / "killed"), rng.randint(1, 2))[0]
        survived += found == -9
    (whole,) = launch(calibrated, 1, str(folder / "whole"), 0)
    (last,) = launch(calibrated, 1, str(folder / "killed"), 0)

    def files(name: str) -> dict[str, bytes]:
        found = [p for p in (folder / name).rglob("*") if p.is_file() and p.name[0] != "."]
        return {str(path.relative_to(folder / name)): path.read_bytes() for path in found}

    return survived, isinstance(whole, bytes) and whole == last and files("whole") == files("killed")


def main() -> int:
    """Returns 1 where the bytes differ."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as folder:
        killed, same = kills(times, Path(folder))
    print(f"{killed} of {times} calibrations were killed in the middle of a write")
    print(f"the last one's files are {'' if same else 'NOT '}the same bytes as those of one nobody killed")
    return int(not same or killed < times)


if __name__ == "__main__":
    sys.exit(main())
