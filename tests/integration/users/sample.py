"""Sample the posterior of a line through noisy points with emcee."""

from concurrent.futures import ThreadPoolExecutor as Executor

import emcee
import numpy as np

rng = np.random.default_rng(12)
x = np.sort(rng.uniform(0, 10, 5000))
y = 0.7 * x + 2 + rng.normal(0, 0.5, x.size)


def log_probability(parameters, x, y):
    slope, offset, log_width = parameters
    if not -5 < log_width < 5:
        return -np.inf
    residuals = (y - slope * x - offset) / np.exp(log_width)
    return float(-0.5 * np.sum(residuals**2) - x.size * log_width)


start = np.array([0.7, 2, -0.7]) + 0.01 * rng.normal(size=(16, 3))
with Executor(2) as ex:
    sampler = emcee.EnsembleSampler(16, 3, log_probability, args=(x, y), pool=ex)
    sampler.random_state = np.random.RandomState(8).get_state()
    sampler.run_mcmc(start, 12)
print(sampler.get_chain(flat=True)[-3:], sampler.acceptance_fraction)
