"""stable-diffusion.cpp: the mask as flags."""

from __future__ import annotations

from .mask import Exported, Reuse

__all__ = ["sd_cpp"]


def sd_cpp(reuse: Reuse) -> Exported:
    """Returns the flags as a line of text."""
    mask = reuse.best()
    flags = (
        '--cache-mode cache-dit --cache-option "Fn=1,Bn=0,warmup=0" '
        f'--scm-mask "{",".join(map(str, mask.computed))}" --scm-policy static'
    )
    return Exported(
        "sd.cpp", ".txt", flags + "\n", f"sd {flags} --steps {mask.steps} ...\n", mask,
        lost=(*mask.lost, "a little speed: the first block runs at skipped steps too"),
        expects=(f"--steps {mask.steps}", "a transformer: its block caches do not know U-Nets"),
    )  # fmt: skip
