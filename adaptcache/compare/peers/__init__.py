"""Other ways to make fewer denoiser calls, one file a method: what a comparison compares with."""

from .base import Case, Knobs, Peer, Ready
from .dbcache import DBCache, DBCacheTaylor, StaticMask
from .first_block import FirstBlock
from .magcache import MagCache
from .samplers import AdamsBashforth, Dpm, Fewer, UniPC
from .taylorseer import TaylorSeer, TaylorSeerLite

__all__ = ["PEERS", "Case", "Knobs", "Peer", "Ready"]

ALL: tuple[Peer, ...] = (
    Fewer(), AdamsBashforth(), UniPC(), Dpm(), MagCache(), FirstBlock(), TaylorSeer(), TaylorSeerLite(),
    DBCache(), DBCacheTaylor(), StaticMask(),
)  # fmt: skip

PEERS: dict[str, Peer] = {peer.name: peer for peer in ALL}
