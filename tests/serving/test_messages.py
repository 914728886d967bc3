"""The protocol's file and its messages in Python are the same, and arrays travel as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from lram_export.serving import messages

FOLDER = Path(messages.__file__).parent


def test_the_table_is_what_protoc_makes_of_the_protocols_file(tmp_path: Path) -> None:
    out = tmp_path / "described"
    assert protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={out}", "policy.proto"]) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    assert file == messages.file_descriptor()


@pytest.mark.parametrize("dtype", messages.DTYPES)
def test_arrays_come_out_as_they_went_in(dtype: str) -> None:
    for array in (np.arange(6).reshape(2, 3), np.array(1), np.zeros((0, 4)), np.arange(12).reshape(3, 4)[:, ::2]):
        sent = messages.message("StepRequest")()
        messages.put(
            sent.observations,
            {"one": array.astype(dtype), "two": array.astype(dtype).astype(f">{np.dtype(dtype).str[1:]}")},
        )
        found = messages.taken(messages.parse(messages.message("StepRequest"), sent.SerializeToString()).observations)
        for values in found.values():
            assert values.dtype == dtype and values.flags.writeable
            np.testing.assert_array_equal(values, array.astype(dtype))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "object", "data": b"\0" * 8}, "expected a dtype of float32, .* got 'object'"),
        ({"dtype": "float32", "shape": [2], "data": b"\0" * 7}, r"expected float32 of shape \[2\], got 7 bytes"),
        ({"dtype": "float32", "shape": [1 << 62, 1 << 62], "data": b""}, "got 0 bytes"),
        ({"dtype": "float32", "shape": [1] * 40, "data": b"\0" * 4}, "got 4 bytes"),
    ],
)
def test_tensors_that_are_none_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        messages.taken_one(messages.message("Tensor")(name="x", **fields))


def test_a_tensor_that_comes_twice_is_refused() -> None:
    sent = messages.message("StepRequest")()
    for _ in range(2):
        messages.put(sent.observations, {"x": np.zeros(1)})
    with pytest.raises(ValueError, match="'x': expected every tensor once"):
        messages.taken(sent.observations)
