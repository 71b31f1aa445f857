"""The family `open_clip`: CLIP and its kin, which take pictures and texts."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.errors import (
    ConfigurationError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from lookalike.models.registry import Loaded, TextSide
from lookalike.models.weights import RANDOM, same_random_weights, state_sha256
from lookalike.records import Preprocess

_PLACES: Final = ("local-dir", "hf-hub")
"""Names that say where a model is, which its weights then name: a folder, or a repository."""

_RESIZES: Final = {"shortest": "crop", "longest": "pad", "squash": "squash"}
_NOT_COUNTED: Final = ("logit_scale", "logit_bias")
_PROBE: Final = "A photo of 3 cats, don't \u00e9t\u00e9 \u6771\u4eac!"
_SHOWN: Final = 8


def load(name: str, weights: str) -> Loaded:
    """Loads both towers; see `registry.Family`.

    `weights` is a tag of open_clip's, the path of a checkpoint, or `random`. Of the names
    `local-dir` and `hf-hub`, it is the folder or the repository that holds the model.
    """
    weights = _settled(name, weights)
    named = f"{name}:{weights}" if name in _PLACES else name
    model = _created(named, weights)
    model.eval().requires_grad_(False)
    tokenizer = _tokenizer(named)
    sha256 = state_sha256(model.state_dict(), classifier=_NOT_COUNTED)
    tokens = _digest(tokenizer)
    visual, context = model.visual, int(tokenizer.context_length)
    preprocess = _preprocess(visual.preprocess_cfg)
    del model.visual
    return Loaded(
        network=_Pictures(visual),
        preprocess=preprocess,
        weights=Path(weights).name if name == "local-dir" or _is_file(weights) else weights,
        sha256=hashlib.sha256(f"{sha256} {tokens}".encode()).hexdigest(),
        versions={"open_clip": str(open_clip.__version__)},
        text=TextSide(tokenize=_one_by_one(tokenizer, context), network=_Texts(model)),
    )


class _Pictures(nn.Module):
    """The tower of pictures, (N, 3, side, side) -> (N, dim)."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        features: Any = self.visual(pixels)
        vectors: Tensor = features[0] if isinstance(features, tuple) else features
        return vectors


class _Texts(nn.Module):
    """The tower of texts, (N, length) int64 -> (N, dim); `model` has lost that of pictures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        encode: Any = self.model.encode_text
        vectors: Tensor = encode(tokens)
        return vectors


def _settled(name: str, weights: str) -> str:
    """The weights that are meant; raises `ConfigurationError` for a name that is not known."""
    if name in _PLACES:
        if weights in ("pretrained", RANDOM):
            what = "folder" if name == "local-dir" else "repository"
            raise ConfigurationError(
                f"open_clip/{name} needs a {what}: name it as open_clip/{name}:{what.upper()}"
            )
        return str(Path(weights).expanduser()) if name == "local-dir" else weights
    known = open_clip.list_models()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3)
        raise ConfigurationError(
            f"open_clip has no model {name!r}"
            + (f". Did you mean {' or '.join(map(repr, nearest))}?" if nearest else "")
            + " python -c 'import open_clip; print(open_clip.list_models())' lists all"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights == "pretrained" and len(tags) == 1:
        return str(tags[0])
    if weights in (*tags, RANDOM) or _is_file(weights):
        return weights
    shown = [*difflib.get_close_matches(weights, tags, n=2), *tags]
    listed = ", ".join(list(dict.fromkeys(shown))[:_SHOWN]) or "none of its own"
    text = f"open_clip/{name} has weights of several kinds" if weights == "pretrained" else ""
    raise WeightsNotFoundError(
        f"{text or f'Unknown weights {weights!r} for open_clip/{name}'}: name some as "
        f"open_clip/{name}:WEIGHTS. Known: {listed}{', ...' * (len(tags) > _SHOWN)}; or the path "
        f"of a checkpoint, or {RANDOM}"
    )


def _is_file(weights: str) -> bool:
    return Path(weights).expanduser().is_file()


def _created(named: str, weights: str) -> Any:
    """Makes the model with its weights, in float32 on the CPU; never random unless asked for."""
    how: dict[str, Any] = {"pretrained_text": False, "weights_only": True}
    if named.partition(":")[0] in _PLACES:
        how |= {"require_pretrained": True}
    elif weights != RANDOM:
        described: Mapping[str, Any] = open_clip.get_pretrained_cfg(named, weights) or {}
        how |= {
            "pretrained": weights if described else str(Path(weights).expanduser()),
            "require_pretrained": True,
            "force_quick_gelu": bool(
                described.get("quick_gelu")
            ),  # of the tag; else only a warning
        }
    try:
        with same_random_weights(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is an error here, or settled above
            return open_clip.create_model(named, device="cpu", precision="fp32", **how)
    except ModuleNotFoundError as exc:
        raise _needs(named, exc) from exc
    except Exception as exc:  # whatever reading a file or downloading one may raise
        raise _failed(named, weights, exc) from exc


def _failed(named: str, weights: str, exc: Exception) -> WeightsError:
    text = re.sub(r"\s+", " ", str(exc))[:400]
    if "state_dict" in text or "size mismatch" in text:
        return WeightsMismatchError(
            f"The weights {weights} do not fit open_clip/{named}: {text}. Give those of this "
            "model, or choose the model of these"
        )
    if named.startswith("local-dir:") or _is_file(weights):
        return WeightsError(
            f"{weights} cannot be used as a model of open_clip ({text}): it must be a checkpoint, "
            "or a folder with open_clip_config.json and open_clip_model.safetensors"
        )
    return WeightsNotFoundError(
        f"The weights {weights} of open_clip/{named} are not on this machine and cannot be "
        f"downloaded ({text}). Put the checkpoint here and name its path, as "
        f"open_clip/{named.partition(':')[0]}:PATH, or copy a filled cache of Hugging Face and set "
        "HF_HOME"
    )


def _needs(named: str, exc: ModuleNotFoundError) -> ConfigurationError:
    return ConfigurationError(
        f"The model open_clip/{named} needs {exc.name}, which is not installed: pip install "
        f"{exc.name}, or choose another model"
    )


def _preprocess(given: Mapping[str, Any]) -> Preprocess:
    """The model's own preprocessing, as `visual.preprocess_cfg` says it."""
    size, fill = given["size"], given.get("fill_color") or 0
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigurationError(f"The model takes pictures of {size}, which are no squares")
    return Preprocess(
        input_size=sides.pop(),
        resize=_RESIZES[given.get("resize_mode") or "shortest"],
        crop_share=1.0,
        interpolation="bilinear" if given.get("interpolation") == "bilinear" else "bicubic",
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        padding=(fill, fill, fill) if isinstance(fill, int) else tuple(fill),
    )


def _tokenizer(named: str) -> Any:
    try:
        return open_clip.get_tokenizer(named)
    except ModuleNotFoundError as exc:
        raise _needs(named, exc) from exc
    except Exception as exc:
        raise WeightsNotFoundError(
            f"The tokenizer of open_clip/{named} is not on this machine and cannot be had ({exc})"
        ) from exc


def _digest(tokenizer: Any) -> str:
    """Hex digest of a tokenizer: its vocabulary, and what it makes of one text."""
    inner: Any = getattr(tokenizer, "tokenizer", None)
    vocabulary = inner.get_vocab() if hasattr(inner, "get_vocab") else tokenizer.encoder
    probe = tokenizer([_PROBE])[0].tolist()
    return hashlib.sha256(json.dumps([vocabulary, probe], sort_keys=True).encode()).hexdigest()


def _one_by_one(tokenizer: Any, length: int) -> Callable[[str], NDArray[np.int64]]:
    """Tokenizes a text to (length,) int64, one at a time: some tokenizers allow no more."""
    lock = threading.Lock()

    def tokenize(text: str) -> NDArray[np.int64]:
        with lock:
            tokens: NDArray[np.int64] = tokenizer([text])[0].numpy().astype(np.int64)
        assert tokens.shape == (length,)
        return tokens

    return tokenize
