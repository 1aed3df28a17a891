"""Fit a damped oscillation with SciPy's differential evolution."""

from concurrent.futures import ThreadPoolExecutor as Executor

import numpy as np
from scipy.optimize import differential_evolution

rng = np.random.default_rng(11)
times = np.linspace(0, 10, 20_000)
seen = 3 * np.exp(-0.4 * times) * np.cos(2 * times) + rng.normal(0, 0.1, times.size)


def misfit(parameters):
    size, decay, frequency = parameters
    model = size * np.exp(-decay * times) * np.cos(frequency * times)
    return float(np.mean((model - seen) ** 2))


bounds = [(0, 10), (0, 2), (0, 5)]
with Executor(2) as ex:
    found = differential_evolution(
        misfit, bounds, rng=5, maxiter=6, updating="deferred", workers=ex.map
    )
print(found.nfev, found.x, found.fun)
