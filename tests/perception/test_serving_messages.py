"""Messages of the server: the layout of safetensors, and every field checked."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.frame import Camera, Frame, LidarSweep
from bevstack.datasets.geometry import rotation_from_quaternion, transform
from bevstack.datasets.images import EncodedImage, PixelImage, encoded_size, reduced
from bevstack.perception.serving.frames import pack_frame
from bevstack.perception.serving.messages import DTYPES, MessageError, pack, unpack
from bevstack.perception.serving.requests import FrameLimits, unpack_frame

ARRAYS = arrays_of.arrays(
    st.sampled_from([*DTYPES.values()]), arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0)
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4), st.text(max_size=20))
def test_messages_are_those_of_the_safetensors_library(arrays, text):
    arrays.pop("__metadata__", None)
    message = pack(arrays, {"key": text})
    ours, metadata = unpack(message)
    assert metadata == {"key": text}
    theirs = safetensors.numpy.load(message)
    again, _ = unpack(safetensors.numpy.save(arrays, {"key": text}))
    for found in (ours, theirs, again):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()


MESSAGE = pack({"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(5, np.uint8)}, {"key": "text"})


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, len(MESSAGE) - 1),
    cut=st.integers(0, 12),
    put=st.binary(max_size=12) | st.sampled_from([b"[" * 5000, b"9" * 5000, b"\xff" * 8, b"NaN"]),
)
def test_a_damaged_message_is_refused_or_read_and_nothing_else(at, cut, put):
    damaged = MESSAGE[:at] + put + MESSAGE[at + cut :]
    try:
        arrays, _ = unpack(damaged)
    except MessageError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(damaged)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F64", "shape": [2], "data_offsets": [8, 24]}, "data_offsets"),  # a gap
        ({"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}, "8 bytes"),
        ({"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}, "data_offsets"),  # past the end
        ({"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, "16 bytes of data"),  # unused
        ({"dtype": "F64", "shape": [-2], "data_offsets": [0, 16]}, "shape"),
        ({"dtype": "F64", "shape": [2.0], "data_offsets": [0, 16]}, "shape"),
        ({"dtype": "F64", "shape": [1 << 62, 0], "data_offsets": [0, 0]}, "shape"),
        ({"dtype": "object", "shape": [2], "data_offsets": [0, 16]}, "dtype"),
        ({"dtype": "F64", "shape": [2]}, "data_offsets"),
        ([], "dtype"),
    ],
)
def test_an_array_that_does_not_fit_is_named(entry, reason):
    text = json.dumps({"array": entry}).encode()
    with pytest.raises(MessageError, match=reason) as caught:
        unpack(len(text).to_bytes(8, "little") + text + bytes(16))
    assert caught.value.field in ("array", "header")


def pose(seed):
    random = np.random.default_rng(seed)
    return transform(rotation_from_quaternion(random.normal(size=4)), random.normal(size=3) * 1e3)


def make_frame(load=None, points=50) -> Frame:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (48, 96, 3), np.uint8)
    model = Pinhole(np.array([[50.0, 0, 48], [0, 60, 24], [0, 0, 1]]), 96, 48)
    cameras = tuple(
        Camera(f"CAM_{i}", load or PixelImage(pixels), model, pose(i), pose(9 + i), 100 + i)
        for i in range(2)
    )
    sweeps = tuple(
        LidarSweep(lambda i=i: random_points(points, i), pose(20 + i), pose(30 + i), 90 - i)
        for i in range(2)
    )
    return Frame("token", "scene", "", 100, pose(99), cameras, sweeps, None)


def random_points(count, seed):
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def test_a_frame_comes_out_as_it_went_in():
    sent = make_frame()
    found = unpack_frame(pack_frame(sent))
    assert (found.token, found.scene, found.timestamp_us) == ("token", "scene", 100)
    assert np.array_equal(found.global_from_ego, sent.global_from_ego)
    for ours, theirs in zip(found.cameras, sent.cameras, strict=True):
        assert (ours.name, ours.timestamp_us) == (theirs.name, theirs.timestamp_us)
        assert (ours.model.width, ours.model.height) == (96, 48)
        assert np.array_equal(ours.model.intrinsic, theirs.model.intrinsic)
        assert np.array_equal(ours.ego_from_camera, theirs.ego_from_camera)
        assert np.array_equal(ours.global_from_ego, theirs.global_from_ego)
        for reduction in (1, 2, 4):
            assert np.array_equal(ours.load(reduction), theirs.load(reduction))
    for ours, theirs in zip(found.sweeps, sent.sweeps, strict=True):
        assert ours.timestamp_us == theirs.timestamp_us
        assert np.array_equal(ours.load(), theirs.load())
        assert np.array_equal(ours.ego_from_lidar, theirs.ego_from_lidar)


def test_a_frame_for_a_model_of_the_lidar_frame_gets_that_frame():
    sent = make_frame()
    found = unpack_frame(pack_frame(sent), "lidar")
    np.testing.assert_allclose(found.bev_from_ego @ sent.sweeps[0].ego_from_lidar, np.eye(4),
                               atol=1e-9)  # fmt: skip
    with pytest.raises(MessageError, match="sweeps"):
        unpack_frame(pack_frame(replace(sent, sweeps=())), "lidar")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_file_travels_as_it_is(suffix):
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8), (96, 48))
    content = cv2.imencode(suffix, smooth[..., ::-1])[1].reshape(-1)
    message = pack_frame(make_frame(EncodedImage(content)))
    assert len(message) < 3 * len(content) + 10_000
    image = unpack_frame(message).cameras[0].load()
    assert abs(image.astype(int) - smooth).max() <= (20 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (640, 33)])
def test_the_size_of_an_image_file_is_that_of_its_pixels(size, progressive):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 1]
    jpeg = cv2.imencode(".jpg", pixels, flags)[1].reshape(-1)
    assert encoded_size(jpeg) == encoded_size(cv2.imencode(".png", pixels)[1].reshape(-1)) == size


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
)
def test_the_size_of_anything_else_is_none_or_a_number(content, head):
    size = encoded_size(np.frombuffer(head + content, np.uint8))
    assert size is None or min(size) >= 0


def test_a_reduced_image_has_the_means_of_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    whole = np.concatenate([pixels, pixels[-1:]])  # the edge is repeated
    means = whole.reshape(3, 2, 4, 2, 3).astype(np.float64).mean((1, 3))
    assert abs(reduced(pixels, 2) - means).max() <= 0.5


def changed(name, array):
    """The message of a frame in which one array is another, or missing."""
    arrays, metadata = unpack(pack_frame(make_frame()))
    return pack({n: a for n, a in (arrays | {name: array}).items() if a is not None}, metadata)


def with_text(**fields):
    arrays, metadata = unpack(pack_frame(make_frame()))
    text = json.dumps(json.loads(metadata["frame"]) | fields)
    return pack(arrays, {**metadata, "frame": text})


MIRRORED = np.diag([1.0, -1.0, 1.0, 1.0])
JPEG = cv2.imencode(".jpg", np.zeros((48, 96, 3), np.uint8))[1].reshape(-1)
MALFORMED = {
    "no array": (changed("cameras.1.intrinsic", None), "cameras.1.intrinsic"),
    "unknown array": (changed("cameras.2.image", np.zeros(3)), "cameras.2.image"),
    "another type": (changed("sweeps.0.points", np.zeros((9, 5))), "sweeps.0.points"),
    "four columns": (changed("sweeps.1.points", np.zeros((9, 4), np.float32)), "sweeps.1.points"),
    "grey image": (changed("cameras.0.image", np.zeros((48, 96), np.uint8)), "cameras.0.image"),
    "no image file": (changed("cameras.0.image", np.zeros(99, np.uint8)), "cameras.0.image"),
    "empty image": (changed("cameras.0.image", np.zeros((0, 9, 3), np.uint8)), "cameras.0.image"),
    "a NaN": (changed("global_from_ego", np.full((4, 4), np.nan)), "global_from_ego"),
    "a mirror": (changed("sweeps.0.ego_from_lidar", MIRRORED), "sweeps.0.ego_from_lidar"),
    "3 x 4": (changed("cameras.0.ego_from_camera", np.eye(4)[:3]), "cameras.0.ego_from_camera"),
    "no focal length": (changed("cameras.0.intrinsic", np.zeros((3, 3))), "cameras.0.intrinsic"),
    "text of no JSON": (pack({}, {"format": "bevstack-frame-1", "frame": "{"}), "frame"),
    "deep JSON": (pack({}, {"format": "bevstack-frame-1", "frame": "[" * 99999}), "frame"),
    "another format": (pack({}, {"format": "bevstack-frame-9"}), "format"),
    "time in words": (with_text(timestamp_us="now"), "frame"),
    "time beyond": (with_text(timestamp_us=1 << 70), "frame"),
    "unknown text": (with_text(speed=3), "frame"),
    "too many": (with_text(sweeps=[{"timestamp_us": 0}] * 99), "sweeps"),
    "empty": (b"", "header"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_the_field_that_cannot_be_used_is_named(case):
    message, field = MALFORMED[case]
    with pytest.raises(MessageError) as caught:
        unpack_frame(message)
    assert caught.value.field == field


def test_a_file_that_stands_for_too_many_pixels_is_refused_before_it_is_decoded():
    jpeg = JPEG.copy()
    at = jpeg.tobytes().index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = 255  # 65535 x 65535
    with pytest.raises(MessageError, match="65535 x 65535") as caught:
        unpack_frame(changed("cameras.1.image", jpeg))
    assert caught.value.field == "cameras.1.image"
    with pytest.raises(MessageError, match="pixels are the most"):
        unpack_frame(pack_frame(make_frame()), limits=FrameLimits(pixels=4000))


def test_a_file_that_is_cut_off_is_named_when_it_is_decoded():
    frame = unpack_frame(changed("cameras.1.image", JPEG[:-100]))
    with pytest.raises(MessageError, match="cut off") as caught:
        frame.cameras[1].load()
    assert caught.value.field == "cameras.1.image"


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in ("numpy", "bevstack") and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} must not be imported")

import numpy
sys.meta_path.insert(0, Blocker())
from bevstack.perception.serving.client import Client
from bevstack.datasets.images import EncodedImage
"""


def test_the_client_needs_numpy_alone():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
