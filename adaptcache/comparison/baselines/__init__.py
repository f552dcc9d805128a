"""Other ways to make fewer denoiser calls, one file a family: what a comparison compares with."""

from .align import AlignYourSteps
from .annealing import BudCache
from .base import Baseline, Case, Params, Ready
from .dbcache import DBCACHES
from .diffusers_caches import FasterCache, FirstBlock, MagCache, Pyramid, Sea, TaylorSeer, TaylorSeerLite
from .samplers import DPM, UNIPC, AdamsBashforth, Fewer
from .searched import SEARCHED
from .teacache import TeaCache
from .zoo import DiCache, EasyCache, HiCache, Learned, NamedMethod, SeaHere

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
