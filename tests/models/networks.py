"""Torchvision's networks as the tests ask for them."""

from lookalike.models.building import build_encoder
from lookalike.models.spec import ModelRequest, RunOptions

_RUN = ("device", "precision", "threads", "compiled")


def request(model="resnet18", weights="random", **options):
    return ModelRequest(model=model, weights=weights, **options)


def torchvision_encoder(model="resnet18", weights="random", **options):
    """Loads an encoder; options are those of a request and of how it runs."""
    run = {name: options.pop(name) for name in _RUN if name in options}
    return build_encoder(request(model, weights, **options), RunOptions(runtime="torch", **run))
