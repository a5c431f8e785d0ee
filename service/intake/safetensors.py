"""Headers of safetensors files, checked more strictly than the format's own library does, and a scan for NaN."""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from service.errors import Invalid
from service.intake.sources import PIECE

MAX_HEADER = 8 << 20
MAX_TENSORS = 100_000
MAX_DIMS = 8
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,256}")
_FORMATS = (None, "pt")


@dataclass(frozen=True)
class Dtype:
    """An element type: its common name and bytes; `infinite` finds NaN and infinity in little-endian elements."""

    name: str
    size: int
    infinite: Callable[[bytes], bool] | None = None


class Tensor(NamedTuple):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def _exponent_is_full(size: int, high: int, low: int) -> Callable[[bytes], bool]:
    """A test of floats of `size` bytes: `high` and `low` are the exponent's bits in the last two bytes.

    Bytes are compared all at once, by C code: no element becomes a Python number.
    """
    in_high = bytes(byte & high == high for byte in range(256))
    in_low = bytes(byte & low == low for byte in range(256))

    def found(data: bytes) -> bool:
        last = data[size - 1 :: size].translate(in_high)
        if b"\x01" not in last:
            return False
        before = data[size - 2 :: size].translate(in_low)
        return bool(int.from_bytes(last, "little") & int.from_bytes(before, "little"))

    return found


DTYPES: dict[str, Dtype] = {
    "F64": Dtype("float64", 8, _exponent_is_full(8, 0x7F, 0xF0)),
    "F32": Dtype("float32", 4, _exponent_is_full(4, 0x7F, 0x80)),
    "F16": Dtype("float16", 2, _exponent_is_full(2, 0x7C, 0)),
    "BF16": Dtype("bfloat16", 2, _exponent_is_full(2, 0x7F, 0x80)),
    "I64": Dtype("int64", 8),
    "I32": Dtype("int32", 4),
    "I16": Dtype("int16", 2),
    "I8": Dtype("int8", 1),
    "U8": Dtype("uint8", 1),
    "BOOL": Dtype("bool", 1),
}


class _Refused(ValueError):
    """The header breaks a rule; the text says which."""


def read_header(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of a whole file, whose bytes they must cover exactly. Raises `Invalid` with SAFETENSORS_REFUSED."""
    try:
        return _read_header(file)
    except _Refused as error:
        raise _invalid(str(error)) from error
    except UnicodeDecodeError as error:
        raise _invalid("its header is not UTF-8") from error
    except RecursionError as error:
        raise _invalid("its header is nested too deep") from error
    except ValueError as error:
        raise _invalid("its header is not JSON") from error


def check_finite(file: BinaryIO, tensors: dict[str, Tensor]) -> None:
    """Raises `Invalid` when a float is NaN or infinite: pruning ranks weights, and NaN has no rank."""
    data_start = 8 + int.from_bytes(_at(file, 0, 8), "little")
    for tensor in tensors.values():
        infinite = DTYPES[tensor.dtype].infinite
        if infinite is None:
            continue
        for start in range(tensor.start, tensor.end, PIECE):
            if infinite(_at(file, data_start + start, min(PIECE, tensor.end - start))):
                raise Invalid("A tensor has NaN or infinite values.", code="WEIGHTS_NOT_FINITE")


def _read_header(file: BinaryIO) -> dict[str, Tensor]:
    size = file.seek(0, os.SEEK_END)
    length = int.from_bytes(_at(file, 0, 8), "little")
    if size < 8 or length > size - 8:
        raise _Refused("its header is cut off")
    if length > MAX_HEADER:
        raise _Refused(f"its header is longer than {MAX_HEADER} bytes")
    header = json.loads(_at(file, 8, length).decode("utf-8"), object_pairs_hook=_Objects(), parse_constant=_no_constant)
    if not isinstance(header, dict):
        raise _Refused("its header is no object")
    _check_metadata(header.pop("__metadata__", {}))
    for name, tensor in header.items():
        if not _NAME.fullmatch(name):
            raise _Refused("a tensor's name has other characters than A-Z a-z 0-9 . _ / - or is too long")
        if not isinstance(tensor, Tensor):
            raise _Refused("an entry is no tensor")
    _check_layout(header, size - 8 - length)
    return header


def _at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


class _Objects:
    """Makes each object of a header as it is parsed, so that a hostile header never becomes a large tree."""

    def __init__(self) -> None:
        self._tensors = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> Any:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise _Refused("its header has a name twice")
        if made.keys() != {"dtype", "shape", "data_offsets"}:
            return made
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise _Refused(f"it has more than {MAX_TENSORS} tensors")
        return _tensor(**made)


def _tensor(dtype: Any, shape: Any, data_offsets: Any) -> Tensor:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Refused(f"a tensor has another element type than {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_DIMS:
        raise _Refused(f"a tensor's shape is no list of at most {MAX_DIMS} sizes")
    if not _counts(data_offsets) or len(data_offsets) != 2:
        raise _Refused("a tensor's data_offsets are no pair")
    tensor = Tensor(dtype, tuple(shape), *data_offsets)
    if tensor.end - tensor.start != tensor.elements * DTYPES[dtype].size:
        raise _Refused("a tensor's bytes are not what its shape needs")
    return tensor


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("its __metadata__ maps no names to texts")
    if metadata.get("format") not in _FORMATS:
        raise _Refused("it was not written for PyTorch (format pt)")


def _check_layout(tensors: dict[str, Tensor], size: int) -> None:
    """Tensors must lie one after another and cover all data: nothing can hide between, behind or under them."""
    at = 0
    for start, end in sorted((tensor.start, tensor.end) for tensor in tensors.values()):
        if start != at:
            raise _Refused("its tensors overlap or leave a gap")
        at = end
    if at != size:
        raise _Refused("its tensors do not cover the file exactly")


def _no_constant(name: str) -> float:
    raise _Refused("its header has NaN or an infinite number")


def _invalid(fault: str) -> Invalid:
    return Invalid(f"A safetensors file is refused: {fault}.", code="SAFETENSORS_REFUSED")
