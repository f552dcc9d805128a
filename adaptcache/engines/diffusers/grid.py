"""The times of a scheduler's grid."""

from typing import Any

EQUAL = 1e-6  # times this close are one time: schedulers compute them in float32
CLOSE = 1e-4  # timesteps this close, relative to the largest, are one


def times_of(scheduler: Any) -> tuple[float, ...]:
    """Returns the times in [0, 1] of a scheduler's timesteps, falling. Syncs the device once.

    Timesteps that count training steps are divided by their number, timesteps that already lie in
    [0, 1] are kept, and anything else (EDM's log-sigmas, sigmas above 1 of Cosmos) is replaced by
    sigma / (1 + sigma). Rising lists (Mochi) are mirrored. Times that come several times in turn (Heun calls
    the denoiser twice at each, PNDM at one) are spread towards the time before, as plans tell steps apart by
    time.
    """
    steps = [float(t) for t in scheduler.timesteps.tolist()]
    if len(steps) > 1 and steps[-1] == 0 and len(set(steps)) - 1 == getattr(scheduler, "num_inference_steps", None):
        steps.pop()  # a grid that names its end too (SCM)
    if not steps:
        return ()
    scale = float(scheduler.config.get("num_train_timesteps") or 1000)
    sigmas = getattr(scheduler, "sigmas", None)
    counted = all(0 <= t <= scale for t in steps)
    if not counted or (_are_sigmas(steps, sigmas) and max(steps) > 1):
        levels = [float(s) for s in sigmas.tolist()[: len(steps)]] if sigmas is not None else steps
        steps = [s / (1 + s) for s in levels]
    elif max(steps) > 1:
        steps = [t / scale for t in steps]
    if steps[0] < steps[-1]:
        steps = [1 - t for t in steps]
    return spread(steps)


def _are_sigmas(steps: list[float], sigmas: Any) -> bool:
    """Whether the timesteps are the noise levels themselves."""
    if sigmas is None or len(sigmas) < len(steps):
        return False
    return all(abs(t - float(s)) <= CLOSE * max(steps) for t, s in zip(steps, sigmas.tolist(), strict=False))


def spread(times: list[float]) -> tuple[float, ...]:
    """Returns times that fall: the k-th but last of equal ones moves k parts towards the time before."""
    groups: list[list[float]] = []
    for time in times:
        if groups and abs(groups[-1][0] - time) <= EQUAL:
            groups[-1].append(time)
        else:
            groups.append([time])
    result, before = list[float](), None
    for equal in groups:
        time, count = min(equal), len(equal)
        gap = (before if before is not None else time) - time
        result += [time + gap * (count - 1 - k) / count for k in range(count)]
        before = time
    return tuple(result)
