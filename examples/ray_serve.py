"""The HTTP API of `cats serve` in replicas of Ray Serve, as many as the load needs: serve run examples.ray_serve:app

Needs cats-toolkit[serve] and ray[serve]. Each replica has a matcher of its own; Ray sends requests to those that are
least busy, and starts another replica where one dies. CATS_MODEL names the model, else it is cats-tiny. The gallery of
/v1/gallery is each replica's own: keep features on the client's side instead (/v1/encode).
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from cats.runtime import Matcher
from cats.serving.server.app import ServerOptions, create_app
from cats.serving.server.guards import Metrics
from cats.serving.service import Service


def build_app() -> Any:
    """The ASGI application of a replica: one matcher on one core."""
    metrics = Metrics()
    matcher = Matcher(os.environ.get("CATS_MODEL", "cats-tiny"), threads=1)
    return create_app(Service(matcher, on_batch=metrics.on_batch), ServerOptions(hosts=None), metrics=metrics)


@serve.deployment(
    ray_actor_options={"num_cpus": 1},
    autoscaling_config={"min_replicas": 2, "max_replicas": 8, "target_ongoing_requests": 2},
    max_ongoing_requests=16,
    health_check_period_s=2,
)
@serve.ingress(build_app)
class Matching:
    """A replica."""


app = Matching.bind()
