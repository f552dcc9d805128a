"""A row of ones and zeros for each block or layer, as the routers of Learning-to-Cache (Ma et al., 2024),
https://arxiv.org/abs/2406.01733, and the plans of ECAD (Aggarwal et al., 2025), https://arxiv.org/abs/2506.15682.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import FailFast, Field, StringConstraints, model_validator

from ..profile import Profile
from ..step import Step, nearest_entries
from .base import StaticPolicy
from .plan import Plan

Row = Annotated[str, StringConstraints(pattern="^[01]+$", max_length=1024)]


class Table(StaticPolicy):
    """Computes a block or layer where its row has a one; runs of another length take the nearest entries."""

    type: Literal["table"] = "table"
    # By block or layer, in the order they are defined: its steps as ones and zeros. One row serves all.
    rows: Annotated[tuple[Row, ...], Field(min_length=1, max_length=4096), FailFast()]

    @model_validator(mode="after")
    def _rows_agree(self) -> Self:
        if len(lengths := {len(row) for row in self.rows}) > 1:
            raise ValueError(f"the rows of a table have one length, got {sorted(lengths)}")
        return self

    @property
    def share(self) -> float:
        """The fraction of all blocks and steps that is computed."""
        return sum(row.count("1") for row in self.rows) / (len(self.rows) * len(self.rows[0]))

    def steps(self, times: tuple[float, ...], gear: int = 0) -> list[int]:
        """Returns the steps at which any block or layer is computed."""
        entries = nearest_entries(len(self.rows[0]), len(times))
        return [i for i, entry in enumerate(entries) if any(row[entry] == "1" for row in self.rows)]

    def init(self, times: tuple[float, ...]) -> list[int]:
        return nearest_entries(len(self.rows[0]), len(times))

    def compute(self, state: list[int], step: Step) -> bool:  # type: ignore[override]
        row = self.rows[step.instance if len(self.rows) > 1 else 0]
        return row[state[step.index]] == "1"

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, **params: Any) -> Self:
        """Returns the best plan of whole steps, for all blocks; rows of their own take errors of each block."""
        steps = Plan.fit(profile, budget=budget, **params).steps(tuple(map(float, profile.times)))
        return cls(rows=("".join("01"[i in steps] for i in range(profile.steps)),))
