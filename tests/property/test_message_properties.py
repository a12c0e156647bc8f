"""H9: any record of a Flower message is read or refused, at the server and at a site."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.app import body, received_arrays
from strategies.secure_grid import _body, _vector
from tacit.errors import ProtocolError
from tacit.secagg.ring import packed_size

scalars = st.one_of(
    st.binary(max_size=40), st.text(max_size=5), st.integers(-5, 5), st.booleans(), st.floats()
)
arrays = st.builds(
    Array,
    st.sampled_from(["uint8", "float32", "object", ""]),
    st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
    st.sampled_from(["numpy.ndarray", "torch.Tensor", ""]),
    st.one_of(st.binary(max_size=200), st.just(Array(np.zeros(9, dtype=np.uint8)).data)),
)
names = st.sampled_from(["tacit", "vector", "arrays", "scaling", "other"])
records = st.one_of(
    st.dictionaries(st.sampled_from(["body", "words", "x"]), scalars, max_size=2).map(ConfigRecord),
    st.dictionaries(st.sampled_from(["words", "w"]), arrays, max_size=2).map(ArrayRecord),
    st.dictionaries(st.sampled_from(["body"]), st.floats(), max_size=1).map(MetricRecord),
)
contents = st.dictionaries(names, records, max_size=4).map(RecordDict)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(contents, st.integers(0, 100))
def test_H9_any_record_is_read_or_refused_on_both_sides(content, size):
    message = SimpleNamespace(content=content)  # all that is looked at
    for read in (lambda: _body(message), lambda: body(message), lambda: received_arrays(message)):
        try:
            read()
        except ProtocolError as error:
            assert error.reason in ("body", "fields", "model")  # noqa: PT017
    try:
        assert len(_vector(message, size)) in (0, size)
    except ProtocolError as error:
        assert error.reason == "vector-size"  # noqa: PT017


def test_C9_a_header_that_asks_for_terabytes_is_refused_by_its_length():
    bomb = Array(np.zeros(8, dtype=np.uint8)).data.replace(b"(8,), }", b"(8000000000000,), }")[:136]
    record = ArrayRecord({"words": Array("uint8", (8,), "numpy.ndarray", bomb)})
    message = SimpleNamespace(content=RecordDict({"vector": record}))
    for size in (8, packed_size(3, 12), 8_000_000_000_000):
        with pytest.raises(ProtocolError, match="vector-size"):
            _vector(message, size)
