"""What every network shares: its facts, its config, and the base class that ties both to a state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from srquant.errors import UserError, unknown

_LARGEST_COUNT = 1024
"""Upper end of every whole number of a config: a forged file cannot ask for a billion blocks."""

_LARGEST_NUMBER = 1e9
"""Upper end of every number in a JSON config; also refuses NaN and infinity."""


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """The outside of a network: what a caller has to know to feed it a picture.

    The network maps float [N, channels, H, W] in 0..peak to float [N, channels, scale*H, scale*W] in
    0..peak. Values may overshoot: they are not clamped unless the network itself ends in a clip.

    Attributes:
        name: Key of the network in `srquant.networks.NETWORKS`.
        scale: Enlargement per side.
        channels: 3 for RGB; 1 for luma, the Y of full-range YCbCr (BT.601, as in JPEG).
        peak: The value of white, 1.0 or 255.0.
        size_multiple: H and W have to be multiples of it.
    """

    name: str
    scale: int
    channels: int = 3
    peak: float
    size_multiple: int = 1


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Everything that rebuilds one network. Plain numbers only: `dataclasses.asdict` gives a JSON dict.

    Raises:
        UserError: a scale that the network does not have, or a number out of range.
    """

    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)

    scale: int

    def __post_init__(self) -> None:
        if self.scale not in self.scales:
            allowed = ", ".join(map(str, self.scales))
            raise UserError(f"{type(self).__name__}: scale is {self.scale}; allowed: {allowed}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 < value < math.inf:
                raise UserError(f"{type(self).__name__}: {field.name} is {value}; allowed: finite, above 0")
            if isinstance(value, tuple) and not all(map(math.isfinite, value)):
                raise UserError(f"{type(self).__name__}: {field.name} is {value}; allowed: finite")
            if isinstance(value, int) and not isinstance(value, bool):
                self._require(field.name, 1, value)

    def _require(self, name: str, smallest: int, value: int, multiple_of: int = 1) -> None:
        """Refuse a whole number outside smallest..1024 or off its multiple."""
        if not smallest <= value <= _LARGEST_COUNT or value % multiple_of:
            rule = f"{smallest}..{_LARGEST_COUNT}" + (f", multiples of {multiple_of}" * (multiple_of > 1))
            raise UserError(f"{type(self).__name__}: {name} is {value}; allowed: {rule}")

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Rebuild a config from the JSON dict of `dataclasses.asdict`.

        Raises:
            UserError: a key that is unknown or missing, or a value of the wrong type.
        """
        hints = get_type_hints(cls)
        known = {field.name: field for field in fields(cls)}
        for key in data:
            if key not in known:
                raise unknown(f"key of {cls.__name__}", key, known)
        for name, field in known.items():
            if name not in data and field.default is MISSING:
                raise UserError(f"{cls.__name__} lacks the key '{name}'")
        return cls(**{key: _typed(f"{cls.__name__}.{key}", hints[key], value) for key, value in data.items()})


ConfigT = TypeVar("ConfigT", bound=NetworkConfig)


class SRNetwork(nn.Module, Generic[ConfigT]):
    """Base of all FP32 super-resolution networks.

    A network is its class, its config and its state dict. A subclass says how to build the modules
    (`__init__`), how to run them (`forward`, traceable by `srquant.networks.tracing.trace`) and how to read
    the config off a state dict (`_read_config`).

    Attributes:
        name: Key in `srquant.networks.NETWORKS`.
        config_type: The class of `config`.
        config: Everything that rebuilds the network.
        info: Scale, channels, value range and size rule.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[NetworkConfig]]

    def __init__(self, config: ConfigT, *, peak: float = 1.0, channels: int = 3, size_multiple: int = 1) -> None:
        super().__init__()
        self.config = config
        self.info = NetworkInfo(
            name=self.name, scale=config.scale, channels=channels, peak=peak, size_multiple=size_multiple
        )

    @classmethod
    def from_config(cls, config: ConfigT) -> Self:
        """A network with fresh random weights (drawn from torch's global generator)."""
        return cls(config)

    def collapsed(self) -> SRNetwork[ConfigT]:
        """The network in the form that is quantised, exported and run: itself, but for those trained in another one.

        See `srquant.networks.collapsing`.
        """
        return self

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> ConfigT | None:
        """The config under which `state` loads into this class, or None for another family of networks.

        Raises:
            UserError: the keys are those of this family, but a key is missing or too many, or a shape does
                not fit; names the key, what was found and what was expected.
        """
        try:
            config = cls._read_config(state)
        except UserError as error:
            raise UserError(f"{cls.name} weights: {error}") from error
        if config is not None:
            cls.check(config, cls.entries(state))
        return config

    @classmethod
    def entries(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a recognised `state` that the network loads (all, unless a file stores constants)."""
        return dict(state)

    @classmethod
    def check(cls, config: ConfigT, state: Mapping[str, Tensor]) -> None:
        """Compare keys and shapes of `state` with those of the network that `config` builds.

        Allocates nothing: the network is built on the meta device.

        Raises:
            UserError: the first difference.
        """
        with torch.device("meta"):
            expected = cls.from_config(config).state_dict()
        missing = [key for key in expected if key not in state]
        if missing:
            raise UserError(f"{cls.name} weights lack the key '{missing[0]}'{_more(missing)}")
        surplus = [key for key in state if key not in expected]
        if surplus:
            raise UserError(f"{cls.name} weights have the unexpected key {surplus[0]!r:.80}{_more(surplus)}")
        for key, tensor in expected.items():
            if state[key].shape != tensor.shape:
                found, wanted = list(state[key].shape), list(tensor.shape)
                raise UserError(f"{cls.name} weights: '{key}' has shape {found}, expected {wanted}")

    @classmethod
    def _read_config(cls, state: Mapping[str, Tensor]) -> ConfigT | None:
        """The config that the keys and shapes tell; None when the telling keys are not there."""
        raise NotImplementedError


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _typed(name: str, hint: type, value: Any) -> Any:
    """`value` as the type of a config field: int, float, bool or a tuple of floats (a list in JSON)."""
    number = type(value) is hint or (hint is float and type(value) is int)
    if number and -_LARGEST_NUMBER < value < _LARGEST_NUMBER:
        return float(value) if hint is float else value
    if get_origin(hint) is tuple and isinstance(value, list | tuple) and len(value) == len(get_args(hint)):
        return tuple(_typed(name, part, item) for part, item in zip(get_args(hint), value, strict=True))
    kind = getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)
    raise UserError(f"{name} is {value!r:.60}; expected {kind}")
