"""Memory and time of a profile's inner products at the sizes of a video: in chunks, and all at once.

    python -m benchmarks.profile_memory --frames 21 --height 60 --width 104 --steps 50

The latents are random, in bfloat16, of Wan's shape (16 channels). What the outputs themselves take is in
both figures. Each way runs in a process of its own, as peak memory only ever grows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time

import numpy as np
import torch

from adaptcache.profiling.statistics import inner_products

CHANNELS = 16


def naive(vectors: list[torch.Tensor]) -> np.ndarray:
    """Makes float64 copies of all outputs and multiplies once."""
    stacked = torch.stack([vector.float().flatten() for vector in vectors]).double()
    return (stacked @ stacked.T).numpy()


WAYS = {"chunks": inner_products, "naive": naive}


def measured(way: str, shape: tuple[int, ...], count: int) -> tuple[float, float, float, float]:
    """Returns megabytes of the vectors, peak megabytes above them, processor seconds, and a checksum."""
    torch.manual_seed(0)
    vectors = [torch.randn(shape).bfloat16() for _ in range(count)]
    held = sum(vector.numel() * vector.element_size() for vector in vectors) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.process_time()
    gram = WAYS[way](vectors)
    seconds = time.process_time() - since
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    return held, peak, seconds, float(np.abs(gram).sum())


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("frames", 21), ("height", 60), ("width", 104), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    shape = (1, CHANNELS, given.frames, given.height, given.width)
    print(f"{given.steps} outputs and as many latents of shape {shape}, {torch.get_num_threads()} threads")
    print(f"{'way':8} {'held MB':>9} {'above MB':>9} {'cpu s':>9} {'checksum':>20}")
    context = multiprocessing.get_context("spawn")
    for way in WAYS:
        with context.Pool(1) as pool:
            held, peak, seconds, total = pool.apply(measured, (way, shape, 2 * given.steps))
        print(f"{way:8} {held:9.0f} {peak:9.0f} {seconds:9.2f} {total:20.10g}", flush=True)


if __name__ == "__main__":
    main()
