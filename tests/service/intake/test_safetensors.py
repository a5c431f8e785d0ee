import io
import struct

import pytest

from service.errors import Invalid
from service.intake.safetensors import DTYPES, Tensor, check_finite, read_header
from tests.uploads import safetensors, with_header

FINITE = {
    "F64": [0.0, -1.5, 1.7e308, 5e-324],
    "F32": [0.0, -1.5, 3.4e38, -3.4e38, 1e-45],
    "F16": [0.0, -1.5, 65504.0, -65504.0, 6e-8],
}
CODES = {"F64": "d", "F32": "f", "F16": "e"}


def test_a_header_is_read() -> None:
    tensors = read_header(io.BytesIO(safetensors({"a": (2, 3), "b": (), "c": (0, 5)})))
    assert tensors == {
        "a": Tensor("F32", (2, 3), 0, 24),
        "b": Tensor("F32", (), 24, 28),
        "c": Tensor("F32", (0, 5), 28, 28),
    }
    assert [tensor.elements for tensor in tensors.values()] == [6, 1, 0]


def _file(dtype: str, data: bytes) -> tuple[io.BytesIO, dict[str, Tensor]]:
    header = b'{"a":{"dtype":"%s","shape":[%d],"data_offsets":[0,%d]}}'
    count = len(data) // DTYPES[dtype].size
    file = io.BytesIO(with_header(header % (dtype.encode(), count, len(data)), data))
    return file, read_header(file)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_among_many_is_found(dtype: str, bad: float) -> None:
    good = FINITE[dtype] * 1000
    check_finite(*_file(dtype, struct.pack(f"<{len(good)}{CODES[dtype]}", *good)))
    for at in (0, 1777, len(good) - 1):
        values = [*good[:at], bad, *good[at + 1 :]]
        with pytest.raises(Invalid) as error:
            check_finite(*_file(dtype, struct.pack(f"<{len(values)}{CODES[dtype]}", *values)))
        assert error.value.code == "WEIGHTS_NOT_FINITE"


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    halves = [struct.pack("<f", value)[2:] for value in (0.0, -1.0, 3.3e38)]
    check_finite(*_file("BF16", b"".join(halves)))
    for bad in (float("inf"), float("nan")):
        with pytest.raises(Invalid):
            check_finite(*_file("BF16", b"".join([*halves, struct.pack("<f", bad)[2:]])))


def test_integers_may_have_any_bits() -> None:
    check_finite(*_file("I64", b"\xff" * 64))


def test_a_large_tensor_is_scanned_to_its_end() -> None:
    data = bytearray(3 << 20)
    data[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(Invalid):
        check_finite(*_file("F32", bytes(data)))
