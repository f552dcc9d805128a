"""What to look at after computed steps, and what it shows in closed form on a profile."""

from collections.abc import Sequence

import numpy as np

from .kernel import Array, fit_open_loop, fit_open_loop_table, forecast_error

CEILING = 100.0  # decibels of a run without errors, so that means stay finite
LEAST = 1e-14  # of a relative energy
HISTORY = 4  # outputs that a forecast uses

Row = tuple[float, ...]


def signal_rows(gram: Array, plan: Sequence[int], history: int = HISTORY) -> list[list[Row]]:
    """Returns the signals of each computed step after the first, as weights of outputs, newest first.

    The first is the innovation: the output less its best forecast from those before. The others are the
    change since the last computed step and, as the newest output's energy is what all are divided by, how
    much energy the one before had.

    Arguments:
        gram: The kernel, with shape (N, N).
        plan: The computed steps, rising.
        history: How many earlier outputs are used.
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

    Arguments:
        gram: Inner products of the outputs by prompt, with shape (P, N, N).
        plan: The computed steps, rising.
        signals: What is looked at, as `signal_rows` gives it.
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

    Arguments:
        gram: Inner products of the outputs by prompt, with shape (P, N, N).
        sensitivity: What an error at each step does to the end result, with shape (N,).
        plan: The computed steps, rising.
    """
    table = fit_open_loop_table(gram.mean(axis=0), plan, HISTORY)
    errors = np.zeros(len(gram))
    for index, row in enumerate(table):
        if row:
            known = [step for step in sorted(plan, reverse=True) if step < index][:HISTORY]
            errors += sensitivity[index] * np.array([forecast_error(one, index, known, np.array(row)) for one in gram])
    return np.asarray(np.minimum(CEILING, -10 * np.log10(np.maximum(errors, 10 ** (-CEILING / 10)))))
