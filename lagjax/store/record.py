"""Growth records: how a tree was grown, as plain JSON from which it can be grown again, bit for
bit.

`GrowthRecord.operator` and `GrowthRecord.key` hold values as `encode` writes them: numbers, strings
and None as they are, a tuple as a list, everything else as an object that says what it is,
`{"class": "lagjax.growth.depth:Stack", "fields": {}}`.
"""

import base64
import dataclasses
import importlib
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Params
from lagjax.fingerprint import digest
from lagjax.model import Growth, Model


class GrowthRecord(NamedTuple):
    """How a tree was grown.

    Attributes:
        operator: the growth operator, encoded.
        key: what fixes its fresh layers and random choices, encoded.
        source: the digest of the small model's parameters.
        versions: of the software that it was grown with.
    """

    operator: Any
    key: Any
    source: str
    versions: dict[str, str | None]

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError for data that is no growth record."""
        if set(data) != set(cls._fields):
            raise ValueError(
                f"a growth record has the fields {list(cls._fields)}, these data have "
                f"{list(data)}; give what to_json made"
            )
        return cls(**data)

    def replay(self, params: Params, source: Axes, target: Model) -> Params:
        """Grows the same tree again, by the operator's call under `jax.jit`, as a run makes it.

        Copies are the same everywhere. Fresh values may differ in their last bits from those of
        another version of JAX, another kind of device, other settings, or a call that is not
        compiled, because XLA rounds otherwise there.

        Decoding imports modules by name: replay records that you trust.

        Raises:
            ValueError: where `params` are not those that were grown, or the operator's class is not
                found.
        """
        if (found := digest(params)) != self.source:
            raise ValueError(
                f"these parameters have the digest {found}; the record was made of others, with "
                f"{self.source}. Give the small model's parameters as they were when it was "
                "grown: same paths, shapes, dtypes and values"
            )
        operator: Growth = decode(self.operator)
        call = jax.jit(lambda key, params: operator(key, params, source, target))
        return call(decode(self.key), params)


def encode(value: Any, where: str = "operator") -> Any:
    """JSON data from which `decode` makes an equal value that prints the same.

    Args:
        value: None, a bool, number, string, array or key of `jax.random`; tuples, NamedTuples and
            dataclasses of such.
        where: what to call it in errors.

    Raises:
        ValueError: for anything else, with the field where it stands.
    """
    # Exact types: a NumPy float is a float as well, but prints as itself.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        # JSON has no infinity.
        return value if math.isfinite(value) else {"float": repr(value)}
    if type(value) is tuple:
        return [encode(each, f"{where}[{index}]") for index, each in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _encode_array(value, where)
    names = _fields(type(value))
    if names is None:
        raise ValueError(
            f"{where} is {value!r}, of type {type(value).__qualname__}, which a growth record "
            "cannot hold; make it a number, a string, an array, a tuple of such (a mapping's "
            "items, say), or a frozen dataclass"
        )
    fields = {name: encode(getattr(value, name), f"{where}.{name}") for name in names}
    return {"class": _name(type(value), where), "fields": fields}


def decode(data: Any) -> Any:
    """The value that was encoded.

    Raises ValueError where a class is not found, or has other fields than it had.
    """
    if isinstance(data, list):
        return tuple(map(decode, data))
    if not isinstance(data, dict):
        return data
    if "float" in data:
        return float(data["float"])
    if "key" in data:
        return jax.random.wrap_key_data(decode(data["data"]), impl=data["key"])
    if "array" in data:
        return _decode_array(data)
    cls: Any = _class(data.get("class"))
    fields, names = data.get("fields", {}), _fields(cls)
    if names is None or set(fields) != set(names):
        raise ValueError(
            f"the class {data['class']} has the fields {names}, and had {list(fields)} when the "
            "record was made; install the versions that the record names"
        )
    values = [decode(fields[name]) for name in names]
    if issubclass(cls, tuple):
        return cls._make(values)
    # Not by the class's own __init__, which may take other arguments than it stores.
    made = object.__new__(cls)
    for name, value in zip(names, values):
        object.__setattr__(made, name, value)
    return made


def _fields(cls: type) -> list[str] | None:
    """Of a dataclass or a NamedTuple; None for other classes."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(cls._fields) if issubclass(cls, tuple) and hasattr(cls, "_fields") else None


def _name(cls: type, where: str) -> str:
    name = f"{cls.__module__}:{cls.__qualname__}"
    try:
        found = _class(name)
    except ValueError:
        found = None
    if found is not cls:
        raise ValueError(
            f"{where} is of the class {name}, which cannot be found again by this name; define it "
            "at the top level of a module"
        )
    return name


def _class(name: Any) -> type:
    module, _, qualname = str(name).partition(":")
    try:
        found = attrgetter(qualname)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        found = None
    cls = found if isinstance(found, type) else None
    if cls is None:
        raise ValueError(
            f"the growth record names the class {name!r}, which is not found here; install the "
            "package that defines it, in the version that the record names"
        )
    return cls


def _encode_array(value: Any, where: str) -> dict[str, Any]:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = encode(jax.random.key_data(value), where)
        return {"key": str(jax.random.key_impl(value)), "data": data}
    if not jnp.issubdtype(value.dtype, np.number) and value.dtype != bool:
        raise ValueError(
            f"{where} is an array of {value.dtype}, which a growth record cannot hold; make it "
            "one of numbers"
        )
    if getattr(value, "weak_type", False):
        # An array made from bytes has none, and the operator might promote it otherwise.
        raise ValueError(
            f"{where} is an array of the weak type of a Python number, which a growth record "
            "cannot hold; give its dtype, or the number itself"
        )
    kinds = {"numpy": np.ndarray, "scalar": np.generic, "jax": jax.Array}
    return {
        "array": next(name for name, kind in kinds.items() if isinstance(value, kind)),
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "bytes": base64.b64encode(np.asarray(value).tobytes()).decode(),
    }


def _decode_array(data: Mapping[str, Any]) -> Any:
    flat = np.frombuffer(base64.b64decode(data["bytes"]), np.dtype(data["dtype"]))
    array = flat.reshape(data["shape"]).copy()
    if data["array"] != "jax":
        return array if data["array"] == "numpy" else array[()]
    made = jnp.asarray(array)
    if made.dtype != array.dtype:
        raise ValueError(
            f"the operator holds an array of {array.dtype}, which JAX makes {made.dtype} here; "
            "set jax_enable_x64 as it was when the record was made"
        )
    return made
