"""Other ways to make fewer denoiser calls, one file a method: what a comparison compares with."""

from .annealing import BudCache
from .attention import FasterCache, Pyramid
from .base import Case, Knobs, Peer, Ready
from .dbcache import DBCache, DBCacheDmd, DBCacheFoca, DBCacheTaylor, StaticMask
from .first_block import FirstBlock
from .magcache import MagCache
from .samplers import AdamsBashforth, Dpm, Fewer, UniPC
from .sea import Sea, SeaHere
from .taylorseer import TaylorSeer, TaylorSeerLite
from .teacache import TeaCache
from .zoo import DiCache, EasyCache, HiCache, Learned

__all__ = ["PEERS", "Case", "Knobs", "Peer", "Ready"]

ALL: tuple[Peer, ...] = (
    Fewer(), AdamsBashforth(), UniPC(), Dpm(), MagCache(), FirstBlock(), TaylorSeer(), TaylorSeerLite(),
    Pyramid(), FasterCache(), Sea(), DBCache(), DBCacheTaylor(), DBCacheFoca(), DBCacheDmd(), StaticMask(),
    SeaHere(), TeaCache(), EasyCache(), DiCache(), HiCache(), Learned(), BudCache(),
)  # fmt: skip

PEERS: dict[str, Peer] = {peer.name: peer for peer in ALL}
