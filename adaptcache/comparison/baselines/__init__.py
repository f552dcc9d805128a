"""Other ways to make fewer denoiser calls, one file a method: what a comparison compares with."""

from .align import AlignYourSteps
from .annealing import BudCache
from .attention import FasterCache, Pyramid
from .base import Baseline, Case, Params, Ready
from .dbcache import DBCACHES
from .first_block import FirstBlock
from .magcache import MagCache
from .samplers import DPM, UNIPC, AdamsBashforth, Fewer
from .sea import Sea, SeaHere
from .searched import SEARCHED
from .taylorseer import TaylorSeer, TaylorSeerLite
from .teacache import TeaCache
from .zoo import DiCache, EasyCache, HiCache, Learned

__all__ = ["BASELINES", "Baseline", "Case", "Params", "Ready"]

ALL: tuple[Baseline, ...] = (
    Fewer(), AdamsBashforth(), UNIPC, DPM, *SEARCHED, AlignYourSteps(), MagCache(), FirstBlock(), TaylorSeer(),
    TaylorSeerLite(), Pyramid(), FasterCache(), Sea(), *DBCACHES, SeaHere(), TeaCache(), EasyCache(), DiCache(),
    HiCache(), Learned(), BudCache(),
)  # fmt: skip

BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in ALL}
