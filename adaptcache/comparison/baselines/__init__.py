"""Other ways to make fewer denoiser calls, one file a family: what a comparison compares with."""

from .base import Baseline, Case, Params, Ready
from .caches import DBCACHES, FasterCache, FirstBlock, MagCache, Pyramid, Sea, TaylorSeer, TaylorSeerLite
from .samplers import DPM, SEARCHED, UNIPC, AdamsBashforth, AlignYourSteps, Fewer
from .zoo import BudCache, DiCache, EasyCache, HiCache, Learned, NamedMethod, SeaHere, TeaCache

__all__ = ["BASELINES", "Baseline", "Case", "Params", "Ready", "find_baseline"]

ALL: tuple[Baseline, ...] = (
    Fewer(), AdamsBashforth(), UNIPC, DPM, *SEARCHED, AlignYourSteps(), MagCache(), FirstBlock(), TaylorSeer(),
    TaylorSeerLite(), Pyramid(), FasterCache(), Sea(), *DBCACHES, SeaHere(), TeaCache(), EasyCache(), DiCache(),
    HiCache(), Learned(), BudCache(),
)  # fmt: skip

BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in ALL}


def find_baseline(name: str) -> Baseline:
    """Returns a baseline: one that has its settings swept, or a method of `adaptcache methods` by its name there."""
    return BASELINES.get(name) or NamedMethod(name)
