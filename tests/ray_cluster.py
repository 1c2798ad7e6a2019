"""A Ray cluster on this machine: a head without cores, and two nodes with a core each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

__all__ = ["two_nodes"]

# A node that is gone is found out within two seconds; one that is slow still has ten to answer.
_WATCH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """The cluster, with this process connected to it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # it would leave a token in the home folder
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        from ray.cluster_utils import Cluster

        from service.bulk.on_ray import ray

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": _WATCH}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
