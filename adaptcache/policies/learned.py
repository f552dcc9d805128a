"""A model of the error, learned from a profile and kept as plain numbers.

LazyDiT (Shen et al., 2024), https://arxiv.org/abs/2412.12444, trains such gates inside of the denoiser.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeFloat, model_validator
from torch import Tensor

from ..limits import FrozenModel
from ..profile import Profile
from ..step import TINY, Signal, Step, relative_distance, worst
from .base import Policy
from .threshold import ThresholdState

REACH = 8  # steps between a computed step and those its output may be reused for, in the data


class Node(FrozenModel):
    """A node of a regression tree; leaves have no children."""

    value: FiniteFloat  # what a leaf predicts
    # which feature is tested: 0 time, 1 time since the last computed step, 2 log of the change
    feature: Annotated[int, Field(ge=0, le=2)] = 0
    at_most: FiniteFloat = 0.0  # up to this value the left child is next, else the right one
    left: int = -1  # its number in the tree
    right: int = -1  # its number in the tree


class Learned(Policy):
    """Computes where the predicted error of reuse reaches the threshold.

    Predicted is the logarithm of the relative error, from the time, the time since the last computed step,
    and the logarithm of the input's relative change since then: by a tree, or linearly where there is none.
    Fitting needs scikit-learn; running does not.
    """

    signal: ClassVar[Signal] = "input"
    state: ClassVar[Any] = ThresholdState

    type: Literal["learned"] = "learned"
    threshold: NonNegativeFloat  # the largest predicted relative error that is skipped
    # nodes of a regression tree, root first; children come after their parents
    tree: Annotated[tuple[Node, ...], Field(max_length=4096)] = ()
    # the weights of the three features and the constant
    linear: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = (0.0, 0.0, 1.0, 0.0)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        for number, node in enumerate(self.tree):
            ends = node.left < 0 and node.right < 0
            if not ends and not (number < node.left < len(self.tree) and number < node.right < len(self.tree)):
                raise ValueError(f"node {number} of the tree has no such children: {node.left}, {node.right}")
        return self

    def compute(self, state: ThresholdState, step: Step) -> bool:
        if step.x is None or state.anchor is None or state.anchor.shape != step.x.shape:
            return True
        gone = step.times[step.past[0]] - step.t
        seen = math.log(worst(relative_distance(step.x, state.anchor), step.groups) + TINY)
        return math.exp(self.predict((step.t, gone, seen))) >= self.threshold

    def observe(self, state: ThresholdState, step: Step, output: Tensor) -> None:
        state.anchor = step.x

    def predict(self, features: tuple[float, float, float]) -> float:
        """Returns the logarithm of the expected relative error."""
        if not self.tree:
            return min(sum(w * f for w, f in zip(self.linear, (*features, 1.0), strict=True)), 700.0)
        node = self.tree[0]
        while node.left >= 0:
            node = self.tree[node.left if features[node.feature] <= node.at_most else node.right]
        return node.value

    @classmethod
    def fit(cls, profile: Profile, *, budget: float = 0.5, model: str = "tree", **params: Any) -> Self:
        """Learns the predictor, a "tree" or a "linear" one, and takes the threshold that spends the budget."""
        params |= (fit_tree if model == "tree" else fit_line)(*build_examples(profile))
        return super().fit(profile, budget=budget, **params)


def build_examples(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Returns features with shape (M, 3) and log errors of reuse with shape (M,), of all prompts."""
    n, rows, values = profile.steps, [], []
    for gram in profile.gram:
        energy = np.diagonal(gram)
        for i in range(1, n):
            for c in range(max(0, i - REACH), i):
                far = [energy[k + i] + energy[k + c] - 2 * gram[k + i, k + c] for k in (0, n)]
                out, into = (max(f, 0.0) / energy[k + c] for f, k in zip(far, (0, n), strict=True))
                gone = profile.times[c] - profile.times[i]
                rows.append((profile.times[i], gone, math.log(math.sqrt(into) + TINY)))
                values.append(math.log(math.sqrt(out) + 1e-9))
    return np.array(rows), np.array(values)


def fit_tree(features: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Returns a regression tree as plain nodes."""
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(max_leaf_nodes=32, min_samples_leaf=4, random_state=0)
    found = tree.fit(features, values).tree_
    columns = found.value[:, 0, 0], found.feature, found.threshold, found.children_left, found.children_right
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "tree": tuple(
            Node(value=value, feature=max(feature, 0), at_most=at_most, left=left, right=right)
            for value, feature, at_most, left, right in rows
        )
    }


def fit_line(features: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Returns the weights of a linear model."""
    from sklearn.linear_model import LinearRegression

    line = LinearRegression().fit(features, values)
    return {"linear": (*map(float, line.coef_), float(line.intercept_))}
