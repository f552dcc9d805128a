"""`python -m tests.fuzz [inputs]`: reads mutated files of all kinds and prints what became of them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.artifacts import kinds
from tests.fuzz.trial import trial

SHARES = {"schedule": 0.4, "settings": 0.1, "profile": 0.2, "preset": 0.2, "prompts": 0.1}


def main() -> int:
    """Returns 1 where any input raised what is not documented, or took more than 50 ms or 100 MB."""
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    bad = 0
    print(f"{'kind':10} {'inputs':>8} {'loaded':>8} {'refused':>8} {'worst ms':>9} {'peak MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds().items():
            found = trial(name, kind, round(SHARES[name] * total), Path(folder))
            counts = f"{found.inputs:8} {found.loaded:8} {found.refused:8}"
            print(f"{name:10} {counts} {found.worst:9.1f} {found.peak:8.1f}", flush=True)
            if found.worst > 50:
                print(f"  slow: {len(found.slowest)} bytes, {found.slowest[:100]!r}")
            for content, error in (found.escaped or [])[:5]:
                print(f"  raised {error[:200]} on {content[:100]!r}")
            bad += len(found.escaped or []) or found.worst > 50 or found.peak > 100
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
