"""Settings of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, TypedDict, Union

from ._library import Owner, call, encode, encode_path, lib, make, text_of
from .calibration import Calibration
from .errors import ConfigError, UnknownKey

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Settings(TypedDict, total=False):
    """Every setting, by key (docs/configuration.md), with what it takes: the keyword arguments of
    `quantize` and others, for type checkers and editors."""

    deployment_profile: str
    bit_width: int
    group_size: int
    scheme: str
    method: str
    gain: str
    scale_dtype: str
    on_nonfinite: str
    packed: str
    compression: str
    streaming_mode: bool
    memory_limit: Union[int, str, None]
    fail_fast: bool
    calibration: Union[Calibration, str, os.PathLike[str], None]
    enable_time_aware: bool
    num_time_groups: int
    time_weighting: str
    enable_spatial: bool
    modality: str
    min_cosine: Union[float, str, None]
    mixed_precision: bool
    max_size: Union[int, str, None]
    avg_bits: Union[float, str, None]
    candidates: Union[Sequence[str], str]
    seed: int
    num_threads: int
    rules: Union[Sequence[Union[str, Mapping[str, Any]]], str]
    # Short for the above.
    profile: str
    bits: int
    keep: Union[Sequence[str], str]


_ALIASES = {"profile": "deployment_profile", "bits": "bit_width", "threads": "num_threads"}

#: Every key, in the order of the library's YAML.
KEYS = tuple(key for key in Settings.__annotations__ if key not in _ALIASES and key != "keep")

_NUMBERS = ("bit_width", "group_size", "num_time_groups", "seed", "num_threads")

_FLOATS = ("min_cosine", "avg_bits")

_FLAGS = ("streaming_mode", "fail_fast", "enable_time_aware", "enable_spatial", "mixed_precision")


# Keys that may be None.
_NONE = (*_FLOATS, "max_size", "memory_limit")


class Config(Owner):
    """Settings of a run, by key. Later ones win; rules accumulate.

    Keys are those of docs/configuration.md. `bits`, `profile` and `threads` stand for `bit_width`,
    `deployment_profile` and `num_threads`; `keep=["lm_head.*"]` adds rules that keep what matches.

        config = Config("edge", bits=4, rules=["*.v_proj.weight=bits:8,group:64"])
        config["method"] = "minmax"

    `calibration` is the path of a file of `Calibration.save`, or a `Calibration` itself, which is no
    part of the YAML; None is none.

    `min_cosine` is what every tensor must reach, or get more bits. `max_size` (such as "2GB", or a
    number of bytes) and `avg_bits` are budgets: the formats of tensors are chosen by what they lose,
    from `candidates` (such as `["int2:256", "int4:128:affine", "int8", "keep"]`), by a sample that
    follows from `seed`. `mixed_precision=True` takes the fewest bytes that `min_cosine` allows.

    No environment variable is read unless `merge_env` or `from_env` is called.
    """

    def __init__(self, profile: str | None = None, /, **settings: Unpack[Settings]) -> None:
        name = None if profile is None else encode(profile, "profile")
        self._handle = make(lib.aq_config_free, lib.aq_config_new, name)
        self.update(settings)

    @classmethod
    def from_yaml(cls, text: str) -> Config:
        """Makes a config from a YAML document, a mapping of keys."""
        config = cls()
        config.merge_yaml(text)
        return config

    @classmethod
    def from_yaml_file(cls, path: str | os.PathLike[str]) -> Config:
        """Makes a config from a YAML file."""
        config = cls()
        config.merge_yaml_file(path)
        return config

    @classmethod
    def from_env(cls) -> Config:
        """Makes a config from the environment: AQ_BIT_WIDTH=2 and so on."""
        config = cls()
        config.merge_env()
        return config

    @classmethod
    def of(cls, config: Union[Config, Mapping[str, Any], None], settings: Mapping[str, Any]) -> Config:
        """`config`, and `settings` over it: another one unless there are none."""
        if isinstance(config, Config) and not settings:
            return config
        result = config.copy() if isinstance(config, Config) else cls()
        if config is not None and not isinstance(config, Config):
            if not isinstance(config, Mapping):
                raise TypeError(f"config must be a Config or a mapping, not {type(config).__name__}")
            result.update(config)
        result.update(settings)
        return result

    def copy(self) -> Config:
        """Copies the settings."""
        copy = Config.__new__(Config)
        with self._open().shared() as handle:
            copy._handle = make(lib.aq_config_free, lib.aq_config_clone, handle)
        return copy

    def _change(self, function: Any, *args: Any) -> None:
        with self._open().exclusive() as handle:
            call(function, handle, *args)

    def _read(self, function: Callable[..., Any], *args: Any) -> str:
        with self._open().shared() as handle:
            return text_of(function, handle, *args) or ""

    def __getitem__(self, key: str) -> bool | float | str:
        """The value in force: a number or bool where the key has these, else text, such as "none";
        rules are separated by `;`."""
        key = _ALIASES.get(key, key)
        try:
            value = self._read(lib.aq_config_get, encode(key, "key"))
        except ConfigError as error:
            raise UnknownKey(str(error)) from None
        if key in _FLAGS:
            return value == "true"
        if key in _FLOATS and value != "none":
            return float(value)
        return int(value) if key in _NUMBERS else value

    def get(self, key: str, default: Any = None) -> Any:
        """The value in force, or `default` for an unknown key."""
        return self[key] if key in self else default

    def __setitem__(self, key: str, value: Any) -> None:
        self.set(key, value)

    def set(self, key: str, value: Any) -> None:
        """Sets one key; `rules` and `keep` add to the rules that are there.

        Rules are a list, each as text or as a mapping (`{"pattern": "*.v_proj.*", "bits": 8}`),
        or text with several separated by `;`.
        """
        key = _ALIASES.get(key, key)
        if key == "keep":
            patterns = [value] if isinstance(value, str) else list(value)
            key, value = "rules", [f"{pattern}=keep" for pattern in patterns]
        if key == "rules" and not isinstance(value, str):
            # JSON is YAML. Each is one rule, whatever is in it.
            rules = json.dumps({"rules": list(value)}, ensure_ascii=False)
            self._change(lib.aq_config_merge_yaml, encode(rules, "rules"))
            return
        if key == "calibration" and (value is None or isinstance(value, Calibration)):
            self._calibrate(value)
            return
        if isinstance(value, os.PathLike):
            value = os.fsdecode(os.fspath(value))
        if value is None and key in _NONE:
            value = "none"
        if key == "candidates" and not isinstance(value, str):
            value = ",".join(value)
        if key == "max_size" and isinstance(value, int):
            value = f"{value}B"
        text = str(value).lower() if isinstance(value, bool) else str(value)
        self._change(lib.aq_config_set, encode(key, "key"), encode(text, key))

    def _calibrate(self, calibration: Calibration | None) -> None:
        if calibration is None:
            self._change(lib.aq_config_set_calibration, None)
            return
        with calibration._open().shared() as handle:
            self._change(lib.aq_config_set_calibration, handle)

    def update(self, settings: Mapping[str, Any] = {}, **more: Any) -> None:
        """Sets several keys, in their order."""
        for key, value in {**settings, **more}.items():
            self.set(key, value)

    def __contains__(self, key: object) -> bool:
        return _ALIASES.get(key, key) in KEYS if isinstance(key, str) else False

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)

    def keys(self) -> tuple[str, ...]:
        """All keys."""
        return KEYS

    def items(self) -> list[tuple[str, bool | float | str]]:
        """All keys and the values in force."""
        return [(key, self[key]) for key in KEYS]

    def merge_yaml(self, text: str) -> None:
        """Applies a YAML document, a mapping of keys."""
        self._change(lib.aq_config_merge_yaml, encode(text, "YAML"))

    def merge_yaml_file(self, path: str | os.PathLike[str]) -> None:
        """Applies a YAML file."""
        self._change(lib.aq_config_merge_yaml_file, encode_path(path, "path"))

    def merge_env(self) -> None:
        """Applies the environment variables AQ_BIT_WIDTH and so on."""
        self._change(lib.aq_config_merge_env)

    def to_yaml(self) -> str:
        """All settings in force, as `from_yaml` takes them."""
        return self._read(lib.aq_config_to_yaml)

    def __repr__(self) -> str:
        if self.closed:
            return "<arrowquant.Config, closed>"
        return f"<arrowquant.Config {dict(self.items())}>"
