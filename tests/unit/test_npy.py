"""Arrays as they come in a message: what numpy writes is read back, and nothing else is."""

import io
import zipfile

import numpy as np
import pytest

from tacit.errors import ProtocolError
from tacit.npy import read_npy


def saved(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.array(0.5, dtype=np.float32),
    np.arange(3),
    np.zeros((0, 4), dtype=np.float32),
    np.array([True, False]),
    np.arange(4, dtype=">f2").reshape(1, 2, 2, 1),
    np.arange(5, dtype=np.uint8),
    np.array([1 + 2j], dtype=np.complex64),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_an_array_reads_back_as_numpy_reads_it(array):
    found, expected = read_npy(saved(array)), np.load(io.BytesIO(saved(array)))
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert found.flags.writeable


def with_header(text, body=bytes(8)):
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(padded).to_bytes(2, "little") + padded + body


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", saved(ARRAYS[0]))
    return file.getvalue()


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
NONE = {
    "nothing": b"",
    "an archive": zipped(),
    "an empty archive": b"PK\5\6" + bytes(18),
    "an open bracket": with_header("{'descr': ("),
    "a pickle": b"\x80\4N.",
    "objects": saved(np.array(["a", "b"])),
    "gigabytes": with_header(HEADER.replace("2,", "2000000000,")),
    "no bytes of a shape beyond all": with_header(HEADER.replace("2,", "0, 99999999999999999999"), b""),
    "a type that is none": with_header(HEADER.replace("<f4", "<f3"), bytes(6)),
    "33 dimensions": with_header(HEADER.replace("2,", "1, " * 32 + "2")),
    "a byte too many": with_header(HEADER, bytes(9)),
    "a byte too few": with_header(HEADER, bytes(7)),
    "a later version": b"\x93NUMPY\2\0" + with_header(HEADER)[8:],
    "a header of another length": with_header(HEADER).replace(b"\1\0v", b"\1\0u"),
}


@pytest.mark.parametrize("name", NONE)
def test_C9_what_is_no_array_is_refused_before_anything_is_reserved(name):
    assert read_npy(with_header(HEADER)).tolist() == [0, 0]
    with pytest.raises(ProtocolError) as error:
        read_npy(NONE[name])
    assert error.value.reason == "model"
