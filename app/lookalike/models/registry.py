"""The networks that can be served: data only, nothing heavy is imported."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from lookalike.errors import ConfigurationError
from lookalike.records import Preprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What there is to know about a network before it is built.

    Attributes:
        name: As torchvision names it, e.g. `resnet50`.
        channels: Channels of the last feature map, the vector's length under `avg` pooling.
        stride: Input pixels for each position of the last feature map, along one side.
        preprocess: What happens to a picture before the network, unless said otherwise.
    """

    name: str
    channels: int
    stride: int = 32
    preprocess: Preprocess = field(default=Preprocess())

    def dim(self, *, pooling: str, input_size: int) -> int:
        """Numbers in a vector under `pooling` (`avg` or `flatten`), for this input in pixels."""
        if pooling == "avg":
            return self.channels
        positions = -(-input_size // self.stride)
        return self.channels * positions * positions


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture(name="resnet18", channels=512),
        Architecture(name="resnet34", channels=512),
        Architecture(name="resnet50", channels=2048),
        Architecture(name="resnet101", channels=2048),
        Architecture(name="resnet152", channels=2048),
    )
}


def get_architecture(name: str) -> Architecture:
    """Finds a network by its name.

    Raises:
        ConfigurationError: No network has this name; the text names those there are.
    """
    architecture = ARCHITECTURES.get(name)
    if architecture is not None:
        return architecture
    nearest = difflib.get_close_matches(name.lower(), ARCHITECTURES, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigurationError(
        f"Unknown model {name!r}.{hint} Known models: {', '.join(ARCHITECTURES)}"
    )
