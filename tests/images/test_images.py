"""Images, their preprocessing, and drawing back onto them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ov_recipro import Explainer, ReciproError
from ov_recipro.images.drawing import COLORMAPS, Colormap, Style, legend, overlay, palette
from ov_recipro.images.preprocess import Preprocessing, Resize, prepare
from ov_recipro.images.reading import decode_image, find_images, read_image
from ov_recipro.sources.metadata import find_labels, find_preprocessing

PLAIN = {"mean": (0, 0, 0), "scale": (1, 1, 1)}


def dotted(height: int, width: int, y: int, x: int) -> np.ndarray:
    """Draw a black image with one bright blob."""
    image = np.zeros((height, width, 3), np.uint8)
    cv2.circle(image, (x, y), 12, (255, 255, 255), -1)
    return image


@pytest.mark.parametrize(
    "resize",
    [
        "standard",
        "crop",
        "fit_to_window",
        "fit_to_window_letterbox",
        "shorter_side_crop",
        "squash_crop",
    ],
)
@pytest.mark.parametrize(("height", "width"), [(300, 500), (640, 200), (80, 60)])
def test_heat_lies_on_the_pixels_that_it_is_about(resize: Resize, height: int, width: int) -> None:
    """The window undoes every kind of resize: a dot seen by the model is drawn on the dot."""
    y, x = round(0.55 * height), round(0.45 * width)
    image = dotted(height, width, y, x)
    tensor, window = prepare(image, Preprocessing(size=(112, 112), resize=resize, **PLAIN))  # type: ignore[arg-type]
    heat = tensor[0, 0] / 255.0
    drawn = overlay(np.zeros_like(image), heat.astype(np.float32), window).sum(axis=2)
    floor = drawn.min()
    weights = np.float64(drawn) - max(floor, np.median(drawn))
    weights[weights < weights.max() / 2] = 0
    rows, columns = np.indices(weights.shape)
    found = (weights * rows).sum() / weights.sum(), (weights * columns).sum() / weights.sum()
    assert found == pytest.approx((y, x), abs=max(height, width) / 112 + 1)


def test_what_the_model_did_not_see_stays_as_it_is() -> None:
    image = np.full((100, 300, 3), 77, np.uint8)
    _, window = prepare(image, Preprocessing(size=(64, 64), resize="crop"))
    drawn = overlay(image, np.ones((7, 7), np.float32), window)
    assert (drawn[:, :100] == 77).all()
    assert (drawn[:, 200:] == 77).all()
    assert (drawn[:, 100:200] != 77).any(axis=2).all()


def test_styles() -> None:
    image = np.full((140, 140, 3), 100, np.uint8)
    heat = np.zeros((7, 7), np.float32)
    heat[2, 3] = 1
    window = (0.0, 0.0, 140.0, 140.0)
    cells = overlay(image, heat, window, Style(cells=True))
    assert (cells[40:60, 60:80] == cells[50, 70]).all()
    assert (cells[39, 60:80] == cells[0, 0]).all()
    smooth = overlay(image, heat, window)
    assert len(np.unique(smooth[50, 60:80, 2])) > 2
    for alpha, expected in ((0.0, image[0, 0]), (1.0, palette("viridis")[0, 0])):
        drawn = overlay(image, heat, window, Style("viridis", alpha))
        np.testing.assert_array_equal(drawn[0, 0], expected)
    lines = overlay(image, heat, window, Style(contour=True))
    assert (lines[:20] == 100).all()  # the image shows, and lines only around the warm cell
    assert 0.01 < (lines != 100).any(axis=2).mean() < 0.2
    flat = overlay(image, 0 * heat, window, Style(contour=True))
    np.testing.assert_array_equal(flat, image)


def test_a_legend_shows_the_colours_from_low_to_high() -> None:
    for width, numbers in ((400, True), (20, False)):
        strip = legend(width, (0.0012, 0.85), Style("viridis"))
        assert strip.shape == (16, width, 3)
        middle = strip[8]
        bar = middle[(np.ptp(middle.astype(int), axis=1)) > 20]  # neither white nor black
        assert (bar[0] == palette("viridis")[0, 0]).all()
        assert (bar[-1] == palette("viridis")[0, -1]).all()
        assert (strip.max(axis=2) < 60).any() == numbers
    lines = legend(400, (0, 1), Style(contour=True))
    edges = np.diff((lines[8].max(axis=1) > 60).astype(int))
    assert (edges == 1).sum() >= 3
    black = (legend(400, (0, 1), Style(contour=True))[8] == 0).all(axis=1)
    assert black.sum() > 200


def test_a_legend_below_an_overlay(explainer: Explainer, cat: Path) -> None:
    explanation = explainer(cat)
    plain, more = (explanation.overlay(style=Style(legend=shown)) for shown in (False, True))
    assert explanation.image is not None
    height = explanation.image.shape[0]
    np.testing.assert_array_equal(more[:height], plain)
    strip = legend(plain.shape[1], explanation.targets[0].range, Style())
    np.testing.assert_array_equal(more[height:], strip)


@pytest.mark.parametrize("colormap", [name for name in COLORMAPS if name != "turbo"])
def test_colours_rise_evenly_in_lightness(colormap: Colormap) -> None:
    colours = np.asarray(palette(colormap) / 255, np.float32)
    lightness = cv2.cvtColor(colours, cv2.COLOR_BGR2Lab)[0, ::17, 0]
    steps = np.diff(lightness)
    assert len(steps) == 15
    assert steps.min() > 0.5 * steps.mean() > 1.5
    assert steps.max() < 1.5 * steps.mean()


def test_styles_that_are_none() -> None:
    with pytest.raises(ReciproError, match="Colormap 'jet' is not one of"):
        Style("jet")  # type: ignore[arg-type]
    with pytest.raises(ReciproError, match="between 0 and 1"):
        Style(alpha=1.5)


def test_values_follow_mean_scale_and_channels() -> None:
    image = np.full((10, 10, 3), (10, 20, 30), np.uint8)
    how = Preprocessing(size=(4, 4), resize="standard", mean=(1, 2, 3), scale=(1, 2, 4))
    tensor, _ = prepare(image, how)
    assert tensor[0, :, 0, 0].tolist() == [29.0, 9.0, 1.75]
    last, _ = prepare(image, how, channels_last=True)
    assert last.shape == (1, 4, 4, 3)
    whole, _ = prepare(image, Preprocessing(size=(4, 4), channels="BGR", **PLAIN), dtype="uint8")  # type: ignore[arg-type]
    assert (whole.dtype.name, whole[0, :, 0, 0].tolist()) == ("uint8", [10, 20, 30])


def test_the_paper_squashes_to_256_and_crops_224() -> None:
    image = np.random.default_rng(0).integers(0, 255, (512, 1024, 3)).astype(np.uint8)
    how = Preprocessing(size=(224, 224), resize="squash_crop", channels="BGR", **PLAIN)  # type: ignore[arg-type]
    tensor, window = prepare(image, how)
    expected = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)[16:240, 16:240]
    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), expected)
    assert window == (64, 32, 960, 480)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tiff", ".jpg"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / f"i{suffix}"), np.full((9, 7, 3), 100, np.uint8))
    assert read_image(tmp_path / f"i{suffix}").shape == (9, 7, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((9, 7), 100, np.uint8),
        np.full((9, 7, 4), 100, np.uint8),
        np.full((9, 7), 100 * 257, np.uint16),
        np.full((9, 7, 3), 100 * 257, np.uint16),
    ],
    ids=["grey", "alpha", "grey-16", "colour-16"],
)
def test_grey_alpha_and_16_bits(pixels: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "i.png"), pixels)
    image = read_image(tmp_path / "i.png")
    assert image.dtype == np.uint8
    assert np.unique(image).tolist() == [100]


def test_exif_orientation_is_honoured(cat: Path) -> None:
    data = cat.read_bytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (8 + len(tiff)).to_bytes(2, "big") + b"Exif\0\0" + tiff
    upright = decode_image(data, "cat")
    turned = decode_image(data[:2] + segment + data[2:], "cat")
    np.testing.assert_array_equal(turned, cv2.rotate(upright, cv2.ROTATE_90_CLOCKWISE))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_jpeg(part: float, cat: Path, tmp_path: Path) -> None:
    data = cat.read_bytes()
    (tmp_path / "i.jpg").write_bytes(data[: int(part * len(data))])
    with pytest.raises(ReciproError, match="truncated"):
        read_image(tmp_path / "i.jpg")


def test_find_images(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/b/2.PNG", "a/notes.txt", "3.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(tmp_path / "a"), str(tmp_path / "*.webp"), str(tmp_path / "a" / "1.jpg")]
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(names)]
    assert found == ["a/1.jpg", "a/b/2.PNG", "3.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReciproError, match="no images"):
        find_images([str(tmp_path / "empty")])
    with pytest.raises(ReciproError, match="no file matches"):
        find_images([str(tmp_path / "*.gif")])


def test_model_info_comes_before_files_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    info = {
        "model_info mean_values": "127 127 127",
        "model_info scale_values": "128",
        "model_info reverse_input_channels": "YES",
        "model_info resize_type": "fit_to_window",
        "model_info labels": "great_white_shark tench",
    }
    how = find_preprocessing(info, tmp_path / "m.onnx", (224, 224))
    assert how == Preprocessing(
        size=(224, 224),
        resize="fit_to_window",
        mean=(127, 127, 127),
        scale=(128, 128, 128),
        channels="RGB",
        source="model_info in the model",
    )
    assert find_labels(info, tmp_path / "m.onnx") == ("great white shark", "tench")


def test_timm_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1], "crop_pct": 0.9,'
        ' "interpolation": "bicubic", "crop_mode": "center"}, "label_names": ["a", "b"]}'
    )
    how = find_preprocessing({}, tmp_path / "m.onnx", (224, 224))
    assert how.mean == (127.5, 127.5, 127.5)
    assert how.scale == (63.75, 127.5, 255)
    assert (how.resize, how.crop_fraction, how.interpolation) == (
        "shorter_side_crop",
        0.9,
        "bicubic",
    )
    assert find_labels({}, tmp_path / "m.onnx") == ("a", "b")


def test_hugging_face_config(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 256}, "do_center_crop": true, "crop_size": 224,'
        ' "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3}'
    )
    (tmp_path / "config.json").write_text('{"id2label": {"0": "cat", "1": "dog"}}')
    how = find_preprocessing({}, tmp_path / "m.onnx", (224, 224))
    assert (how.resize, how.crop_fraction, how.interpolation) == (
        "shorter_side_crop",
        0.875,
        "bicubic",
    )
    assert how.mean == pytest.approx((127.5,) * 3)
    assert find_labels({}, tmp_path / "m.onnx") == ("cat", "dog")


def test_without_a_word_the_imagenet_preset_is_assumed(tmp_path: Path) -> None:
    how = find_preprocessing({}, tmp_path / "m.onnx", (224, 224))
    assert "assumed" in how.source
    assert (how.resize, how.crop_fraction) == ("shorter_side_crop", 0.875)


@pytest.mark.parametrize(
    "info",
    [
        {"model_info mean_values": "1 2"},
        {"model_info resize_type": "magic"},
        {"model_info scale_values": "a b c"},
    ],
)
def test_senseless_metadata(info: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ReciproError):
        find_preprocessing(info, tmp_path / "m.onnx", (224, 224))
