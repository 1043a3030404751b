"""Decoding and resizing: what every kind of file gives, geometry, damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bnjax.data import DataError
from bnjax.data.views import decoding
from bnjax.data.views.crops import Window
from bnjax.data.views.decoding import DamagedImageError, open_image
from bnjax.data.views.jpeg import keep_rows

WIDTH, HEIGHT = 90, 70


def photo(width=WIDTH, height=HEIGHT, seed=0):
    """Smooth, with detail: uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind="JPEG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def reference_resize(pixels, window, size):
    """Triangle filter in float64, as wide as an output pixel, cut at the window's pixels."""
    for axis, start, extent, count in (
        (0, window.top, window.height, size[1]),
        (1, window.left, window.width, size[0]),
    ):
        scale = extent / count
        inside = np.arange(int(start), int(np.ceil(start + extent)))
        centres = start + (np.arange(count) + 0.5) * scale
        distance = np.abs(inside[None] + 0.5 - centres[:, None]) / max(scale, 1)
        weights = np.maximum(1 - distance, 0)
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels.take(inside, axis), (1, axis)), 0, axis)
    return pixels


def test_pixels_are_those_that_pillow_decodes():
    data = encoded(photo(), quality=90)
    np.testing.assert_array_equal(
        open_image(data).pixels(), np.asarray(Image.open(io.BytesIO(data)))
    )
    assert (open_image(data).width, open_image(data).height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("name", ["picture.JPEG", "n02105855_2933.JPEG"])
def test_a_png_is_decoded_whatever_its_file_is_called(tmp_path, name):
    """ImageNet has one."""
    (tmp_path / name).write_bytes(encoded(photo(), "PNG"))
    data = (tmp_path / name).read_bytes()
    np.testing.assert_array_equal(open_image(data).pixels(), photo())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grayscale_is_repeated(kind):
    """JPEG's quantization at quality 95 moves this photo by up to 6 levels."""
    gray = photo()[..., :1]
    pixels = open_image(encoded(gray[..., 0], kind, **({"quality": 95} if kind == "JPEG" else {})))
    got = pixels.pixels()
    assert got.shape == (HEIGHT, WIDTH, 3)
    assert np.all(got == got[..., :1])
    np.testing.assert_allclose(got[..., :1].astype(int), gray, atol=0 if kind == "PNG" else 6)
    np.testing.assert_array_equal(open_image(gray).pixels(), np.repeat(gray, 3, -1))


def adobe_transform(data, transform):
    """The same JPEG with Adobe's marker: 0 is CMYK, 2 is YCCK."""
    segment = b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    plain = data[:2] + data[data.index(b"\xff\xdb") :]
    return plain[:2] + b"\xff\xee" + struct.pack(">H", 2 + len(segment)) + segment + plain[2:]


def test_cmyk_with_adobes_marker_is_inverted_ink():
    """Adobe stores 255 - ink; without black, 255 - ink is the colour."""
    ink = np.full((16, 16, 4), (10, 100, 200, 0), np.uint8)
    raw = encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), quality=100)  # inverted by it
    pixels = open_image(adobe_transform(raw, 0)).pixels()
    written_inverted = open_image(raw).pixels()  # Pillow itself writes the marker
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels, written_inverted)
    np.testing.assert_array_equal(pixels, 255 - ink[..., :3])


def test_ycck_is_converted():
    """The luma and chroma of a gray and no black: the ink is gray, so is the picture."""
    planes = np.full((16, 16, 4), (60, 128, 128, 255), np.uint8)
    raw = encoded(Image.frombytes("CMYK", (16, 16), (255 - planes).tobytes()), quality=100)
    pixels = open_image(adobe_transform(raw, 2)).pixels().astype(int)
    assert pixels.shape == (16, 16, 3)
    assert np.ptp(pixels) <= 3
    np.testing.assert_allclose(pixels, 255 - 60, rtol=0, atol=3)  # an ink of 60: 255 - 60 stored


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_dropped_and_palettes_are_looked_up(mode):
    pixels = np.repeat(photo()[..., :1], 3, -1) if mode == "LA" else photo() // 64 * 64
    image = Image.fromarray(pixels).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(7)
    expected = np.asarray(image.convert("RGB"))
    got = open_image(encoded(image, "PNG")).pixels()
    np.testing.assert_array_equal(got, expected)
    if mode != "P":
        np.testing.assert_array_equal(got, pixels)  # what is hidden stands


def test_gray_of_16_bits_keeps_its_upper_8():
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    got = open_image(encoded(values, "PNG")).pixels()
    np.testing.assert_array_equal(got[..., 0], np.arange(256).reshape(16, 16))


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    data = encoded(photo(), exif=exif.tobytes())
    assert (open_image(data).width, open_image(data).height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(open_image(data).pixels(), open_image(encoded(photo())).pixels())


WINDOWS = [
    Window(0, 0, WIDTH, HEIGHT),
    Window(11, 7, 60, 45),
    Window(2.25, 3.5, 80.5, 61.75),
    Window(50, 40, 10, 8),  # enlarged
    Window(89, 69, 1, 1),
]


@pytest.mark.parametrize("window", WINDOWS)
def test_resizing_is_the_triangle_filter(window):
    """Pillow rounds after each axis: within one level of float64."""
    got = open_image(photo()).resized(window, (20, 24))
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got, reference_resize(photo(), window, (20, 24)), rtol=0, atol=1.01)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_decoding_a_window_alone_gives_the_same_pixels(window, options):
    data = encoded(photo(), quality=90, **options)
    whole = open_image(open_image(data).pixels())
    got = open_image(data).resized(window, (64, 48))
    np.testing.assert_array_equal(got, whole.resized(window, (64, 48)))


def test_large_windows_are_decoded_smaller(monkeypatch):
    """A tenth of the pixels are decoded, and the view is that of all within a few levels."""
    data = encoded(photo(901, 701), quality=95)
    decoded = []
    rgb = decoding._rgb
    monkeypatch.setattr(
        decoding, "_rgb", lambda file: (image := rgb(file), decoded.append(image.size))[0]
    )
    window = Window(101.5, 33, 700, 650)
    got = open_image(data).resized(window, (100, 100))
    assert decoded == [(226, 176)]  # a quarter, rounded up
    whole = open_image(np.asarray(Image.open(io.BytesIO(data))))
    difference = np.abs(got.astype(int) - whole.resized(window, (100, 100)))
    assert difference.mean() < 0.5
    assert difference.max() <= 6


@pytest.mark.parametrize("interpolation", ["bilinear", "area", "nearest", "bicubic"])
def test_geometry_on_an_image_that_tells_its_coordinates(interpolation):
    """Each pixel of 2 x 2 covers 8 x 4: centres at 20 + 4 + 8 i - 1/2 and 10 + 2 + 4 j - 1/2."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    got = open_image(pixels).resized(Window(20, 10, 16, 8), (2, 2), interpolation).astype(float)
    slack = 1.3 if interpolation != "area" else 0.5  # cut at the window, or rounded
    np.testing.assert_allclose(got[:, :, 0], [[23.5, 31.5]] * 2, atol=slack)
    np.testing.assert_allclose(got[:, :, 1], [[11.5] * 2, [15.5] * 2], atol=slack)


OPTIONS = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "optimized": {"optimize": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", [1, 2, 8, 15, 16, 17, 30, 31, 32, 48, 67, 70])
def test_a_lower_frame_keeps_the_rows_bit_for_bit(options, rows):
    data = encoded(photo(), quality=90, **options)
    short = keep_rows(data, rows)
    got, whole = (np.asarray(Image.open(io.BytesIO(file))) for file in (short, data))
    np.testing.assert_array_equal(got[:rows], whole[:rows])
    assert rows <= got.shape[0] <= min(HEIGHT, rows + 31)


def test_a_frame_is_not_lowered_where_that_would_lose_something():
    whole = encoded(photo())
    assert keep_rows(whole, 8) != whole
    for data in (encoded(photo(), progressive=True), whole[:-2], whole[:100], b"\xff\xd8\xff\xd9"):
        assert keep_rows(data, 8) is data


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 40_000, 8, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "neither a JPEG nor a PNG file: 0 bytes"),
        (b"GIF89a__", "neither a JPEG nor a PNG file: 8 bytes that begin with b'GIF89a__'"),
        (b"\xff\xd8\xff\xd9", "SyntaxError"),
        (b"\x89PNG\r\n\x1a\n", "broken|SyntaxError|OSError"),
        (
            BOMB + chunk(b"IDAT", b""),
            "50000 x 40000 pixels, more than 67108864 in all, in 45 bytes",
        ),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data, said):
    with pytest.raises(DamagedImageError, match=said):
        open_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_a_file_that_is_cut_off_is_refused_even_where_the_window_is_whole(kind, part):
    """The window is the upper left corner, which every one of these files still has."""
    data = encoded(photo(300, 200), kind)
    with pytest.raises(DamagedImageError, match=r"truncated|broken|SyntaxError|OSError"):
        open_image(data[: int(part * len(data))]).resized(Window(0, 0, 8, 8), (8, 8))


def test_a_damaged_png_is_refused():
    data = bytearray(encoded(photo(), "PNG"))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(DataError):
        open_image(bytes(data)).pixels()


def png(values, passes, *, rows=None):
    """An RGB PNG of the pixels that each pass takes; of so many of its rows, where given."""
    lines = [
        b"\0" + line.tobytes()
        for left, top, across, down in passes
        for line in values[top::down, left::across]
        if line.size
    ]
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, len(passes) > 1)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines[:rows]))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


PLAIN = [(0, 0, 1, 1)]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7 += [(0, 1, 1, 2)]


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (19, 33)])
@pytest.mark.parametrize("passes", [PLAIN, ADAM7], ids=["plain", "interlaced"])
def test_a_png_without_all_its_rows_is_refused(passes, size):
    """Its checksums are right; Pillow would leave the rows black."""
    values = photo(*size)
    np.testing.assert_array_equal(open_image(png(values, passes)).pixels(), values)
    short = open_image(png(values, passes, rows=-1))
    with pytest.raises(DamagedImageError, match=r"rows are missing: its pixels take .* bytes, it"):
        short.pixels()
    with pytest.raises(DamagedImageError, match="rows are missing"):
        short.resized(Window(0, 0, 1, 1), (1, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_with_all_its_rows_is_whole_in_every_mode(mode):
    image = Image.fromarray(np.zeros((901, 1203, 3), np.uint8))  # long where it is unpacked
    if mode == "I;16":
        image = Image.fromarray(np.zeros((901, 1203), np.uint16))
    assert not open_image(encoded(image, "PNG", mode)).pixels().any()


def zeroed_inside(data):
    """Eight bytes in the middle of a JPEG's coded pixels."""
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    return data[:middle] + bytes(8) + data[middle + 8 :]


@pytest.mark.parametrize("rows", [HEIGHT, 64])
def test_damage_inside_a_jpeg_is_not_found_and_gives_one_result_everywhere(rows, monkeypatch):
    """With simplejpeg and without, whole and in part: what Pillow makes of it."""
    data = zeroed_inside(encoded(photo(), quality=90))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    assert not np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(encoded(photo())))))
    for library in (decoding.simplejpeg, None):
        monkeypatch.setattr(decoding, "simplejpeg", library)
        got = open_image(data).resized(Window(0, 0, WIDTH, rows), (WIDTH, rows), "nearest")
        np.testing.assert_array_equal(got, pixels[:rows])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ([1, 2], "bytes or a NumPy array, got list"),
        (np.zeros((4, 4, 3)), r"uint8 .* got float64 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"has no pixels: its shape is \[0, 4, 3\]"),
    ],
)
def test_other_arrays_are_refused(image, said):
    with pytest.raises(ValueError, match=said):
        open_image(image)
