"""When to compute: one file a method."""

from .base import Policy
from .plan import Plan
from .uniform import Uniform

__all__ = ["POLICIES", "Policy"]

POLICIES: dict[str, type[Policy]] = {
    "plan": Plan,
    "uniform": Uniform,
}
