"""Settings: one name in three spellings (`LOOKALIKE_DATA_DIR`, `--data-dir`, `data_dir`)."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from lookalike.cores import available_cores
from lookalike.errors import ConfigurationError, InvalidRequestError
from lookalike.models.spec import Precision, Runtime
from lookalike.records import Effort
from lookalike.store.filters import parse_field_names

PREFIX = "LOOKALIKE_"

_CACHE = Path("~/.cache/lookalike")
LEAST_KEY = 8  # characters
_ROOT_PATH = "^(/[A-Za-z0-9._~-]+)+$"
_ORIGIN = r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?"
_SIZES = TypeAdapter(ByteSize)

Network = IPv4Network | IPv6Network


def read_size(value: Any) -> int:
    """Reads a number of bytes, with a unit or without. Raises `ValueError`."""
    try:
        return int(_SIZES.validate_python(value))
    except ValidationError:
        raise ValueError(
            f"{value!r} is no size: write a number of bytes, or one with a unit, e.g. 2GB"
        ) from None


Size = Annotated[int, BeforeValidator(read_size)]
"""A number of bytes; 2GB as well as 2000000000."""


class Settings(BaseSettings):
    """What can be set, from flags, the environment or `.env`, in this order of precedence."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("data")
    """Folder that holds everything stored"""
    cache_dir: Annotated[Path, Field(validate_default=True)] = _CACHE
    """Folder for what can be made again: converted networks, vectors of folders, datasets;
    $XDG_CACHE_HOME/lookalike if that is set"""
    host: str = "127.0.0.1"
    """Address to listen on"""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one"""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses and networks, separated by commas, of proxies whose X-Forwarded-For is believed;
    none for none"""

    root_path: Annotated[str | None, Field(pattern=_ROOT_PATH)] = None
    """Path below which a proxy shows the service, e.g. /lookalike"""
    cors_origins: str | None = None
    """Origins, separated by commas, whose pages may call the service from a browser; * for all"""

    model: str = "resnet50"
    """resnet50, efficientnet_lite0, timm/NAME, ...: docs/models.md"""
    weights: str | None = None
    """A name of weights, a path to a state dict, or random; model's own if unset: IMAGENET1K_V1"""
    pooling: Literal["avg", "flatten"] = "avg"
    """avg: one number a channel; flatten: the whole last feature map"""
    resize: Literal["squash", "crop"] | None = None
    """squash: the whole picture; crop: its center, proportions kept; model's own if unset"""
    head: Path | None = None
    """A trained head: its .safetensors file, or the folder that holds it"""
    input_size: Annotated[int | None, Field(ge=32, le=1024)] = None
    """Side of the network's input in pixels; model's own if unset"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    runtime: Runtime = "auto"
    """auto: openvino where it is installed and no GPU is used; or torch"""
    precision: Precision = "auto"
    """Number format inside the network; int8 after lookalike quantize"""
    compile: bool = False
    """Whether torch.compile speeds up a CUDA device"""
    threads: Annotated[int | None, Field(ge=1, le=256)] = None
    """CPU cores to use; all that the process may use if unset"""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most pictures embedded at once"""
    queue_size: Annotated[int, Field(ge=1, le=4096)] = 128
    """Most pictures or requests that wait; more get 503"""

    index: str = "Flat"
    """Index type: Flat (exact), auto, or a factory string of FAISS, e.g. HNSW32,SQ8"""
    index_recall: Annotated[float, Field(ge=0.5, le=1)] = 0.99
    """Share of the true matches that an approximate index is set to find"""
    index_memory: Annotated[Size | None, Field(ge=1)] = None
    """Memory that auto may take, e.g. 2GB; a quarter of the machine's if unset"""
    index_parameters: str | None = None
    """How hard searches look, e.g. nprobe=16,k_factor=4; as measured when the index was built if
    unset"""
    recall_sample: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of searches that are done again exactly, to measure recall; 0: none"""
    recalibrate: bool = True
    """Whether calibrated scores are calibrated anew after large changes of a collection"""
    filter_fields: str | None = None
    """Metadata fields, separated by commas, to read into memory at the start; others are read by
    the first filter on them"""
    filter_timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds that a request waits for the fields of its filter to be read"""
    originals: Literal["keep", "reference", "none"] = "keep"
    """keep: copy files; reference: point at files indexed in place; none"""
    trash_days: Annotated[int, Field(ge=0, le=3650)] = 7
    """Days that files of deleted pictures stay in the data folder's trash"""

    admin_key: SecretStr | None = None
    """Key for changes; made and kept in the data folder if unset"""
    read_key: SecretStr | None = None
    """Key for calls that only read; they need no key if unset"""
    require_key: bool = False
    """Whether calls that only read need a key even if there is no read_key"""
    link_lifetime: Annotated[int, Field(ge=0, le=31_536_000)] = 86_400
    """Seconds that a link to a picture works at least, without a key, where reading needs one; 0:
    it needs a key, too"""
    max_audit_bytes: Annotated[Size, Field(ge=1_000_000)] = 100_000_000
    """Most bytes of the audit log; the oldest entries go first"""

    max_file_bytes: Annotated[Size, Field(ge=1_000)] = 20_000_000
    """Most bytes of one picture"""
    max_pixels: Annotated[int, Field(ge=1_000)] = 64_000_000
    """Most pixels of one picture"""
    decode_timeout: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """Seconds of CPU time that decoding one picture may take"""
    max_files: Annotated[int, Field(ge=1, le=1000)] = 64
    """Most pictures in one POST /index"""
    max_metadata_bytes: Annotated[Size, Field(ge=2, le=1_000_000)] = 16_384
    """Most bytes of one picture's metadata as JSON"""
    max_archive_bytes: Annotated[Size, Field(ge=1_000)] = 10_000_000_000
    """Most bytes of one archive in POST /index/archive"""
    import_dirs: str | None = None
    """Folders below which POST /index/folder and /index/manifest may read, whole paths separated by
    commas or colons; none if unset"""
    backup_dir: Path | None = None
    """Folder that POST /backup brings up to date; none if unset"""
    backup_keep: Annotated[int, Field(ge=1, le=1000)] = 7
    """Newest versions that such a folder keeps"""
    ready_timeout: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Seconds that the readiness canary may take"""

    fetch_urls: bool = False
    """Whether pictures are fetched from addresses (POST /search/url, manifests)"""
    fetch_timeout: Annotated[float, Field(gt=0, le=60)] = 10.0
    """Seconds in which a picture must be fetched, redirects too"""
    fetch_ports: str = "80,443"
    """Ports that may be fetched from, separated by commas"""
    fetch_allow: str | None = None
    """Networks and hosts, separated by commas, to fetch from though not public"""
    max_fetches: Annotated[int, Field(ge=1, le=16)] = 8
    """Most addresses fetched at once; more get 503"""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines to print"""
    log_format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, JSON otherwise"""

    @property
    def cores(self) -> int:
        """CPU cores to use."""
        return self.threads or available_cores()

    @field_validator("index_parameters", "filter_fields")
    @classmethod
    def _check_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        try:
            if info.field_name == "filter_fields":
                parse_field_names(value)
            else:
                Effort.parse(value)
        except InvalidRequestError as exc:
            raise ValueError(str(exc)) from exc
        return value

    @field_validator("admin_key", "read_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < LEAST_KEY:
            raise ValueError(f"a key has at least {LEAST_KEY} characters, not {len(value)}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        parse_networks(value)
        return value

    @field_validator("root_path", mode="before")
    @classmethod
    def _end_root_path(cls, value: Any) -> Any:
        return (value.rstrip("/") or None) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        parse_origins(value)
        return value

    @field_validator("import_dirs")
    @classmethod
    def _check_dirs(cls, value: str | None) -> str | None:
        for folder in parse_dirs(value):
            if not os.path.isabs(os.path.expanduser(folder)):  # noqa: PTH111, PTH117
                raise ValueError(f"'{folder}' is not a whole path: write e.g. /mnt/photos")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _find_cache(cls, value: Path) -> Path:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if value == _CACHE and base.is_absolute():  # its standard: a relative one counts as unset
            return base / "lookalike"
        try:
            return value.expanduser()
        except RuntimeError as exc:
            raise ValueError(
                f"{value} cannot be found: there is no home folder; name an absolute path"
            ) from exc

    @field_validator("port", mode="before")
    @classmethod
    def _explain_kubernetes(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                f"{value!r} was injected by Kubernetes for a Service named 'lookalike'. Rename the "
                "Service, or set enableServiceLinks: false in the pod, or pass --port"
            )
        return value


def parse_dirs(text: str | None) -> list[Path]:
    """Folders in one text, separated by commas or as in PATH."""
    parts = (text or "").replace(os.pathsep, ",").split(",")
    return [Path(part.strip()) for part in parts if part.strip()]


def parse_origins(text: str | None) -> list[str]:
    """Origins in one text, separated by commas. Raises `ValueError` for what is none."""
    origins = [part.strip() for part in (text or "").split(",") if part.strip()]
    for origin in origins:
        if origin != "*" and not re.fullmatch(_ORIGIN, origin):
            raise ValueError(
                f"{origin!r} is no origin: write scheme, host and port as a browser sends them, "
                "e.g. https://shop.example,http://localhost:5173, or *"
            )
    return origins


def parse_networks(text: str) -> list[Network]:
    """Networks in one text, separated by commas; an address is a network of one.

    Raises `ValueError` for what is neither.
    """
    names = [] if text.strip() == "none" else text.split(",")
    try:
        return [ip_network(name.strip(), strict=False) for name in names if name.strip()]
    except ValueError as exc:
        raise ValueError(
            f"{exc}: write addresses and networks, e.g. 127.0.0.1,10.0.0.0/8, or none"
        ) from None


def load_settings(**given: Any) -> Settings:
    """Reads the settings; `given`, where not None, wins over the environment and `.env`.

    Raises:
        ConfigurationError: There is no such setting, or a value cannot be used; the text names
            each one and why.
    """
    for name in given:
        if name not in Settings.model_fields:
            nearest = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigurationError(f"There is no setting {name!r}{hint}")
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        lines = [
            f"{PREFIX}{'_'.join(str(part) for part in error['loc']).upper()}: "
            f"{error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        ]
        raise ConfigurationError("; ".join(lines)) from exc


def unknown_variables(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """LOOKALIKE_ variables that no setting reads, each with the nearest known name, if any."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    unknown = [name for name in environment if name.startswith(PREFIX) and name not in known]
    return {name: next(iter(difflib.get_close_matches(name, known, n=1)), None) for name in unknown}
