"""What to look at after computed steps, what it shows on a profile, and how a run will end that shows it.

Predictions are regressions: candidates are compared by cross-validation over prompts, and the best is fitted to all
of them and kept as plain numbers that run on any device without scikit-learn: a polynomial of degree one or two, or
radial basis functions around the prompts it was fitted on (kernel ridge regression).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernel import Array, fit_open_loop, fit_open_loop_table, forecast_error

CEILING = 100.0  # decibels of a run without errors, so that means stay finite
LEAST = 1e-14  # of a relative energy: below, float32 knows nothing
HISTORY = 4  # outputs that a forecast uses
FOLDS = 10
RIDGES = np.logspace(-2, 4, 25)
FIRMNESS = 0.5  # ridge of the radial basis functions: signals explain about half of the variance
WIDTHS = ("rbf 0.02", "rbf 0.1", "rbf 0.5")  # times the number of signals
GAIN = 0.02  # of R2, that a candidate has to have over a simpler one

Row = tuple[float, ...]


def signal_rows(gram: Array, plan: Sequence[int], history: int = HISTORY) -> list[list[Row]]:
    """Returns the signals of each computed step after the first, as weights of outputs, newest first.

    The first is the innovation: the output less its best forecast from at most `history` before, by the kernel. The
    others are the change since the last computed step and, as the newest output's energy is what all are divided by,
    how much energy the one before had.
    """
    signals: list[list[Row]] = []
    for number in range(1, len(plan)):
        known = list(reversed(plan[:number]))[:history]
        forecast = fit_open_loop(gram, plan[number], known)
        rows = [(1.0, *(-float(weight) for weight in forecast)), (0.0, 1.0)]
        if len(known) > 1:  # with one, it says what the innovation says
            rows.insert(1, (1.0, -1.0))
        signals.append(rows)
    return signals


def measure_signals(gram: Array, plan: Sequence[int], signals: Sequence[Sequence[Row]]) -> list[Array]:
    """Returns what is seen in full runs, one array with shape (P, F) a computed step after the first.

    From inner products of the outputs by prompt, with shape (P, N, N), and the signals of `signal_rows`.
    """
    seen = []
    for number, rows in enumerate(signals, start=1):
        columns = []
        for row in rows:
            steps, weights = list(reversed(plan[: number + 1]))[: len(row)], np.array(row)
            energy = np.einsum("i,pij,j->p", weights, gram[:, steps][:, :, steps], weights)
            columns.append(np.log10(np.maximum(energy / gram[:, plan[number], plan[number]], LEAST)))
        seen.append(np.stack(columns, axis=1))
    return seen


def predict_psnr(gram: Array, sensitivity: Array, plan: Sequence[int]) -> Array:
    """Returns decibels that runs by a plan should end with, in the model that errors add up, with shape (P,).

    From inner products of the outputs by prompt, with shape (P, N, N).
    """
    table = fit_open_loop_table(gram.mean(axis=0), plan, HISTORY)
    errors = np.zeros(len(gram))
    for index, row in enumerate(table):
        if row:
            known = [step for step in sorted(plan, reverse=True) if step < index][:HISTORY]
            errors += sensitivity[index] * np.array([forecast_error(one, index, known, np.array(row)) for one in gram])
    return np.asarray(np.minimum(CEILING, -10 * np.log10(np.maximum(errors, 10 ** (-CEILING / 10)))))


@dataclass(frozen=True)
class QualityFit:
    """A regression from F signals of P prompts."""

    numbers: dict[str, Any]  # the fields of `adaptcache.policies.signals.QualityPredictor`
    left_out: Array  # what is predicted for each prompt by fits to the others, with shape (P,)
    scores: dict[str, float]  # the share of the variance explained on prompts left out, by candidate; may be negative


def build_regression(name: str, count: int) -> Any:
    """Returns an unfitted candidate on so many signals, as a pipeline of scikit-learn.

    What lies beyond the signals it is fitted on is unknown, so it is clipped to their range.
    """
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.dummy import DummyRegressor
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler

    kind, _, width = name.partition(" ")
    last: list[Any]
    match kind:
        case "mean":
            last = [DummyRegressor()]
        case "linear":
            last = [RidgeCV(RIDGES)]
        case "quadratic":
            last = [PolynomialFeatures(include_bias=False), RidgeCV(RIDGES)]
        case _:
            radial = KernelRidge(alpha=FIRMNESS, kernel="rbf", gamma=float(width) / count)
            last = [TransformedTargetRegressor(radial, transformer=StandardScaler(with_std=False))]
    return make_pipeline(MinMaxScaler(clip=True), StandardScaler(), *last)


def fit_quality(signals: Array, values: Array, names: tuple[str, ...] = ()) -> QualityFit:
    """Compares the candidates and returns the best one, fitted to all prompts. Needs scikit-learn.

    Arguments:
        signals: What was seen, with shape (P, F).
        values: What the runs ended with, in decibels, with shape (P,).
        names: The candidates, the simplest first; by default "mean", and with enough prompts "linear", "quadratic"
            and "rbf" of three widths.
    """
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    prompts, count = signals.shape
    # A fit leaves one fold out, and a slope needs two prompts.
    names = (
        names or ("mean", "linear", "quadratic", *WIDTHS)[: 1 if prompts < 3 else 2 if prompts < 2 * FOLDS else None]
    )
    folds = np.empty(prompts, int)  # the same for all candidates
    folds[np.random.default_rng(0).permutation(prompts)] = np.arange(prompts) % FOLDS
    spread = float(((values - values.mean()) ** 2).sum()) or 1.0
    left_out, scores, best = {}, {}, names[0]
    for name in names:
        model = build_regression(name, count)
        left_out[name] = np.asarray(cross_val_predict(model, signals, values, cv=PredefinedSplit(folds)))
        scores[name] = 1 - float(((values - left_out[name]) ** 2).sum()) / spread
        if scores[name] > scores[best] + GAIN:
            best = name
    model = build_regression(best, count).fit(signals, values)
    numbers = extract_numbers(model[-1], signals, values) | {"r2": scores[best]}
    return QualityFit(numbers, left_out[best], scores)


def extract_numbers(model: Any, signals: Array, values: Array) -> dict[str, Any]:
    """Returns what a fitted candidate knows, and the range and scale of the signals, as plain numbers."""
    count = signals.shape[1]
    numbers = {
        "low": signals.min(axis=0), "high": signals.max(axis=0), "centre": signals.mean(axis=0),
        "scale": np.maximum(signals.std(axis=0), 1e-6), "constant": values.mean(), "linear": np.zeros(count),
    }  # fmt: skip
    if (weights := getattr(model, "coef_", None)) is not None:
        numbers |= {"constant": model.intercept_, "linear": weights[:count], "square": weights[count:]}
    if (radial := getattr(model, "regressor_", None)) is not None:
        numbers |= {"around": radial.X_fit_, "heights": radial.dual_coef_, "width": np.array(radial.gamma)}
    return {name: np.asarray(value).tolist() for name, value in numbers.items()}
