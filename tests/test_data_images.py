"""Folders of images: every pixel comes back, sub-folders are labels or splits."""

import numpy as np
import pytest
import torch

from reading import check_refused, random, raw_of
from xhat.data import load_data


@pytest.fixture
def picture(tmp_path):
    Image = pytest.importorskip("PIL.Image")

    def write(name, array, **options):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, **options)
        return tmp_path / "images"

    return write


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "PNG", "gif"])
def test_grey_images(picture, ending):
    values = random(5, 6, 4, dtype=np.uint8)
    for i, image in enumerate(values):
        folder = picture(f"{i}.{ending}", image)
    raw = raw_of(folder)
    np.testing.assert_array_equal(raw.train[:, 0], values)
    assert raw.train_labels is None
    data = load_data(folder)
    assert data.shape == (1, 6, 4)
    assert data.kind.name == "grey"


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_colour_images(picture, ending):
    values = random(5, 6, 4, 3, dtype=np.uint8)
    for i, image in enumerate(values):
        folder = picture(f"{i}.{ending}", image, **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_array_equal(raw_of(folder).train, values.transpose(0, 3, 1, 2))
    assert load_data(folder).kind.name == "colour"


def test_jpeg_is_close(picture):
    folder = picture("a.jpg", np.full((8, 8, 3), 100, np.uint8), quality=95)
    assert abs(raw_of(folder).train.astype(int) - 100).max() <= 2


def test_one_colour_image_makes_all_colour(picture):
    grey = random(4, 4, dtype=np.uint8)
    picture("a.png", grey)
    raw = raw_of(picture("b.png", random(4, 4, 3, dtype=np.uint8)))
    assert raw.train.shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(raw.train[0], np.stack([grey] * 3))


def test_other_modes(picture):
    Image = pytest.importorskip("PIL.Image")
    deep = np.array([[0, 256], [65535, 513]], np.uint16)
    folder = picture("a.png", deep)
    np.testing.assert_array_equal(raw_of(folder).train[0, 0], [[0, 1], [255, 2]])
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(folder / "a.png")
    np.testing.assert_array_equal(raw_of(folder).train[0, 0], [[0, 255], [255, 0]])
    Image.fromarray(random(2, 2, 4, dtype=np.uint8)).save(folder / "a.png")
    assert raw_of(folder).train.shape == (1, 3, 2, 2)
    (folder / "a.png").unlink()
    Image.fromarray(random(2, 2)).save(folder / "a.tif")
    check_refused(folder, "a.tif", "floating-point")


def test_sub_folders_are_labels(picture):
    for i in range(12):
        folder = picture(f"{'cat' if i % 2 else 'ant'}/deeper/{i}.png", np.full((2, 2), i, np.uint8))
    (folder / "cat" / ".hidden.png").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not an image")
    data = load_data(folder)
    assert data.label_names == ("ant", "cat")
    level = (data.train.tensor()[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(level % 2, data.train.labels)


def test_sub_folders_named_after_splits_are_splits(picture):
    for i in range(12):
        folder = picture(f"{'train' if i < 8 else 'test'}/{'cat' if i % 2 else 'ant'}/{i}.png", np.full((2, 2), i, "u1"))
    data = load_data(folder)
    assert (len(data.train), len(data.valid), len(data.test)) == (7, 1, 4)
    assert data.label_names == ("ant", "cat")
    assert (data.test.tensor()[:, 0, 0, 0] * 255).round().sort().values.tolist() == [8, 9, 10, 11]


def test_both_words_for_validation_are_one_split(picture):
    for name in ("train/a/0", "train/b/1", "val/a/2", "validation/b/3"):
        folder = picture(f"{name}.png", np.full((2, 2), 9, np.uint8))
    raw = raw_of(folder)
    assert raw.valid_labels.tolist() == ["a", "b"]
    assert raw.test is None


def test_images_of_several_sizes_need_resize(picture):
    for i in range(6):
        folder = picture(f"{i}.png", random(4, 6 + (i == 3), dtype=np.uint8))
    check_refused(folder, "3.png", "4x7", "4x6", "--resize 4x6")
    data = load_data(folder, resize=(8, 5))
    assert data.shape == (1, 8, 5)


def test_a_folder_without_images_is_refused(tmp_path):
    check_refused(tmp_path, "neither images nor the MNIST files")


def test_a_single_image_is_refused(picture):
    check_refused(picture("a.png", random(4, 4, dtype=np.uint8)) / "a.png", "give the folder")
