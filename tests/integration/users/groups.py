"""Summarise each group of a table with pandas."""

from concurrent.futures import ThreadPoolExecutor as Executor

import numpy as np
import pandas as pd

rng = np.random.default_rng(14)
rows = 200_000
table = pd.DataFrame(
    {
        "shop": rng.choice(["north", "south", "east", "west"], rows),
        "day": pd.Timestamp("2024-01-01")
        + pd.to_timedelta(rng.integers(0, 90, rows), "D"),
        "sold": rng.gamma(2, 10, rows).round(2),
    }
)


def summarise(group):
    daily = group.groupby("day")["sold"].sum().rolling(7).mean()
    return pd.Series({"best": daily.idxmax(), "mean": daily.mean(), "rows": len(group)})


with Executor(2) as ex:
    shops, groups = zip(*table.groupby("shop"), strict=True)
    summary = pd.DataFrame(ex.map(summarise, groups), index=shops)
print(summary)
