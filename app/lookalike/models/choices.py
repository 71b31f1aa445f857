"""What can be chosen of a network, whatever runs it; nothing heavy is imported."""

from __future__ import annotations

from typing import Final, Literal

from lookalike.errors import ConfigurationError

Pooling = Literal["avg", "flatten"]
Resize = Literal["squash", "crop"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Runtime = Literal["auto", "torch", "openvino"]

LEAST_INPUT_SIZE: Final = 32  # pixels
LARGEST_INPUT_SIZE: Final = 4096


def check_choices(*, pooling: str, resize: str, input_size: int) -> None:
    """Refuses values that no setting has.

    Args:
        pooling: `avg` or `flatten`.
        resize: `squash` or `crop`.
        input_size: Side of the input in pixels, 32 to 4096.

    Raises:
        ConfigurationError: A value is none of these.
    """
    for name, value, known in (
        ("pooling", pooling, ("avg", "flatten")),
        ("resize", resize, ("squash", "crop")),
    ):
        if value not in known:
            raise ConfigurationError(f"Unknown {name} {value!r}: it must be {', '.join(known)}")
    if not LEAST_INPUT_SIZE <= input_size <= LARGEST_INPUT_SIZE:
        raise ConfigurationError(
            f"Input_size must be from {LEAST_INPUT_SIZE} to {LARGEST_INPUT_SIZE} pixels, "
            f"not {input_size}"
        )
