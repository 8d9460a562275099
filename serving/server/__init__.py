"""``cats serve``: the page and an HTTP API on top of :class:`cats.serving.service.Service`."""
