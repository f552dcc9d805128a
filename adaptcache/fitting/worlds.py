"""Gaussian worlds: what a denoiser does to data with a power-law spectrum, in closed form.

Latents are `x = alpha * data + sigma * noise`. The data of a prompt split into independent modes,

    data_m = mean_m + sqrt(lambda_m) z,    mean_m = sqrt(mu_m) z',

where the prompt fixes z' and leaves z open. The best guess of the data from the latents (the *data prediction*, from
which noise, velocity and v prediction follow) is linear in them:

    D_m(x) = mean_m + w_m (x - alpha mean_m),     w_m = alpha lambda_m / (alpha^2 lambda_m + sigma^2)

Without a prompt it is the same with mean 0 and variance lambda + mu, and guidance g is `D_without + g (D_with -
D_without)`. Along the probability flow a mode without mean moves as `x(sigma) = sqrt(alpha^2 lambda + sigma^2) z`.

Real denoisers are not linear. What no linear forecast can know is added as a Gaussian process, the *residual*. With
`rho = alpha^2 (lambda + mu) / (alpha^2 (lambda + mu) + sigma^2)`, how far a mode is fixed at a noise level, its size
is `residual * sqrt(lambda + mu) * 4 rho (1 - rho)`: large modes are decided at high noise, small ones late. It is
correlated over the logarithm of the signal-to-noise ratio with a Matérn kernel of order 3/2 (innovations of the demo
models grow with the 1.0th to 1.2th power of the distance, between orders 1 and 3/2).

References:
    | Wang and Vastola (2023), The Hidden Linear Structure in Score-Based Models, https://arxiv.org/abs/2311.10892
    | Karras et al. (2022), https://arxiv.org/abs/2206.00364
    | Biroli et al. (2024), Dynamical Regimes of Diffusion Models, https://arxiv.org/abs/2402.18491
"""

from dataclasses import dataclass

import numpy as np

from .kernel import Array

KINDS = 16  # of modes: nodes of the quadrature over the spectrum
LEAST = 1e-6  # noise shares below are taken for this one: logarithms have to be finite
NUGGET = 1e-6  # of the residual's variance is new at every step: rounding, and a Cholesky factor that exists


@dataclass(frozen=True)
class World:
    """The numbers of a world."""

    # there are lambda^slope modes of variance lambda on a logarithmic scale. -0.42 puts most modes at small variances
    # and most of the energy into large ones, as spectra of images do
    slope: float = -0.42
    width: float = 15.0  # the logarithm of the largest variance over the smallest
    prompt: float = 6.0  # energy that the prompt fixes over what it leaves open, for the modes of the largest variance
    tilt: float = 0.1  # the means' energy falls with lambda^(1 + tilt): above 0 prompts fix large modes rather
    residual: float = 0.28  # the size of what is not linear, in standard deviations of a mode that is half fixed
    memory: float = 1.8  # how far the residual is correlated, in nats of the signal-to-noise ratio
    # near pure noise the ratio changes without end while nothing happens; there it is that of a signal share
    # `alpha / (alpha + sigma)` of this size
    floor: float = 0.05
    # Guidance acts in full from 1 + slack on, and in proportion below. Where the prompt fixes nearly all, all of a
    # small guidance would drive the data far beyond what models do.
    slack: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "prompt", "residual", "memory", "floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} has to be above 0, got {getattr(self, name)}")

    def effective(self, guidance: float) -> float:
        """Returns the guidance scale that acts."""
        beyond = guidance - 1
        return 1 + beyond * min(1.0, abs(beyond) / self.slack) if self.slack else guidance


# Fitted to the kernels of the demo models, all numbers but two agree between models. Of these two: one standard
# deviation over the models (of the logarithms) above and below the mean.
PRIOR = tuple(
    World(prompt=prompt, residual=residual, slack=slack)
    for prompt, slack in ((1.2, 0.0), (30.0, 6.0))
    for residual in (0.17, 0.44)
)


@dataclass(frozen=True)
class Response:
    """What the denoiser of a world does at M noise levels, for K kinds of modes.

    The data prediction of a mode is `gain * x + pull * mean + size * xi`, where xi is the residual's process,
    independent between modes.
    """

    share: Array  # how many of the modes are of a kind, with sum 1 and shape (K,)
    chance: Array  # variances of what the prompt leaves open, with shape (K,)
    mean: Array  # variances of what it fixes, with shape (K,)
    gain: Array  # with shape (M, K)
    pull: Array  # with shape (M, K)
    size: Array  # with shape (M, K)
    process: Array  # a square root of the covariance of xi between levels, lower triangular, with shape (M, M)


def respond(world: World, alphas: Array, sigmas: Array, guidance: float = 1.0, variance: float = 1.0) -> Response:
    """Returns what the denoiser of a world does at M noise levels.

    Guidance is the scale of the classifier-free one, 1 for none; the variance is the mean square of the data, in the
    units of the latents.
    """
    nodes, weights = np.polynomial.legendre.leggauss(KINDS)
    chance = np.exp(world.width * (nodes - 1) / 2)
    share = chance**world.slope * weights
    share /= share.sum()
    mean = world.prompt * chance ** (1 + world.tilt)
    scale = variance / float(share @ (chance + mean))
    chance, mean = chance * scale, mean * scale
    guidance = world.effective(guidance)
    a, s = alphas[:, None], sigmas[:, None]
    with_prompt, without = wiener(chance, a, s), wiener(chance + mean, a, s)
    fixed = a * without
    # Residuals with and without the prompt are taken for independent, of one size and kernel.
    size = np.hypot(guidance, guidance - 1) * world.residual * np.sqrt(chance + mean) * 4 * fixed * (1 - fixed)
    gain = without + guidance * (with_prompt - without)
    return Response(
        share, chance, mean, gain, guidance * (1 - a * with_prompt), size, correlate(world, alphas, sigmas)
    )


def wiener(variance: Array, alpha: Array, sigma: Array) -> Array:
    """Returns the weight that latents have in the best linear guess of the data."""
    return np.asarray(alpha * variance / (alpha**2 * variance + sigma**2))


def correlate(world: World, alphas: Array, sigmas: Array) -> Array:
    """Returns a square root of the residual's correlation between noise levels, with shape (M, M)."""
    total = alphas + sigmas
    ratio = 2 * np.log((alphas / total + world.floor) / np.maximum(sigmas / total, LEAST))
    apart = np.abs(ratio[:, None] - ratio[None, :]) / world.memory
    kernel = (1 + apart) * np.exp(-apart)
    return np.linalg.cholesky((1 - NUGGET) * kernel + NUGGET * np.eye(len(kernel)))
