"""Past one machine: the executor's facade on a Dask cluster; needs ``shmexec[dask]``.

::

    from shmexec.cluster import DaskExecutor

    with DaskExecutor("tcp://scheduler:8786") as ex:
        future = ex.submit(fn, x)

Dask moves work and bytes between machines; on each of its workers, a *node*, calls run in
one shmexec pool. What there is:

====================  ====================================================================
``executor``          the facade
``connecting``        finding a cluster, and whether its nodes will do; ``local`` starts one
``calls``, ``futures``  calls as seen from here; ``packing``, ``inputs``: what they are given
``streams``, ``actors``  the other ways of calling
``node``              what runs in a Dask worker; ``failing``: how its errors come back
``cargo``             what is moved
====================  ====================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["ClusterStats", "DaskExecutor", "NodeStats"]

if TYPE_CHECKING:
    from shmexec.cluster.executor import DaskExecutor
    from shmexec.cluster.figures import ClusterStats, NodeStats


def __getattr__(name: str) -> object:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        from shmexec.cluster import executor, figures
    except ImportError as error:
        if error.name not in {"dask", "distributed"}:
            raise
        msg = "shmexec.cluster needs Dask: pip install 'shmexec[dask]'"
        raise ImportError(msg, name=error.name) from error
    home = executor if name == "DaskExecutor" else figures
    return getattr(home, name)
