"""Work on shards within a flow: each part is a task of Prefect's, which `prefect-dask` gives to the cluster.

The stages that DVC starts use the same cluster: its address is in their environment.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.shards.cluster import ADDRESS, AHEAD, await_workers, cluster, connected, in_order
from wbc_model.params import RetrainParams
from wbc_model.spread import spread_by

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner


class Part:
    """Work and what it is done on. Prefect looks into lists and dataclasses among a task's parameters, but not into this."""

    def __init__(self, work: Callable[[Any], Any], part: Any) -> None:
        self.work, self.part = work, part


@task(name="shard", cache_policy=NO_CACHE, persist_result=False)
def shard(one: Part) -> Any:
    """The work on one part, on whatever machine."""
    return one.work(one.part)


@contextlib.contextmanager
def spread_in_flow(params: RetrainParams) -> Iterator[None]:
    """Have work on shards done as `retrain.runner` says, in this flow by tasks and in the stages that DVC starts by the same
    cluster. Raises WbcError where no scheduler answers."""
    if params.runner == "local":
        yield
        return
    from prefect_dask.task_runners import DaskTaskRunner

    with cluster(params) as address, _in_environment(address), connected(address) as client:
        ahead = AHEAD * await_workers(client, address)
        if FlowRunContext.get() is None:
            from flows.shards.cluster import on_cluster

            with spread_by(partial(on_cluster, client)):
                yield
            return
        with DaskTaskRunner(address=address) as runner, spread_by(partial(_by_tasks, runner, copy_context(), ahead, address)):
            yield


@contextlib.contextmanager
def _in_environment(address: str) -> Iterator[None]:
    before = os.environ.get(ADDRESS)
    os.environ[ADDRESS] = address
    try:
        yield
    finally:
        os.environ.pop(ADDRESS)
        if before is not None:
            os.environ[ADDRESS] = before


def _by_tasks(
    runner: "DaskTaskRunner",
    context: Context,
    ahead: int,
    address: str,
    work: Callable[[Any], Any],
    parts: Sequence[Any],
) -> Iterator[Any]:
    """The results of the parts in their order. They are tasks of the flow, not of the task that asks for them: what that one has
    in hand, such as a terminal, goes nowhere."""

    def submit(part: Any) -> Any:
        return context.copy().run(runner.submit, shard, {"one": Part(work, part)})

    return in_order(submit, parts, ahead, address)
