"""The images worker's own work, on real pictures."""

import errno
import os
import random
from types import SimpleNamespace

import pytest
from PIL import Image

import images
from asyncq import Retry

pytestmark = pytest.mark.any_version


def a_picture(path, size=(640, 480), mode="RGB", **options):
    """Write a picture with much in it, so that a part of its file is a part of its content."""
    chance = random.Random(7)
    Image.frombytes(mode, size, chance.randbytes(size[0] * size[1] * len(mode))).save(path, **options)
    return path


def convert(source):
    """Convert, and return the result and the steps."""
    steps = []
    return images.convert_picture(source, lambda *step: steps.append(step)), steps


def test_a_picture_becomes_webp_in_full_size_and_thumbnails(tmp_path, image_settings):
    """The files are where the result says, with the dimensions that it says."""
    image_settings(thumbnail_edges=(320, 64))
    a_picture(tmp_path / "pictures" / "a.jpg")
    done, steps = convert("a.jpg")
    sizes = {}
    for output in (done.webp, *done.thumbnails):
        with Image.open(tmp_path / "converted" / output.path, formats=["WEBP"]) as picture:
            picture.load()
            sizes[output.path] = picture.size
        assert sizes[output.path] == (output.width, output.height)
        assert (tmp_path / "converted" / output.path).stat().st_size == output.size_bytes
    assert sizes == {
        "webp/a.jpg.webp": (640, 480),
        "thumbnails/320/a.jpg.webp": (320, 240),
        "thumbnails/64/a.jpg.webp": (64, 48),
    }
    assert steps == [
        (0, 4, "decoding"),
        (1, 4, "WebP"),
        (2, 4, "thumbnail 320"),
        (3, 4, "thumbnail 64"),
        (4, 4, "done"),
    ]


def test_a_thumbnail_is_never_larger_than_the_picture(tmp_path, image_settings):
    """Small pictures are not blown up."""
    image_settings(thumbnail_edges=(1024,))
    a_picture(tmp_path / "pictures" / "small.png", size=(100, 50))
    done, _ = convert("small.png")
    assert (done.thumbnails[0].width, done.thumbnails[0].height) == (100, 50)


def test_a_picture_that_the_camera_laid_on_its_side_is_turned_upright(tmp_path, image_settings):
    """EXIF orientation 6: the picture's left edge is its top."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (200, 100), "blue")
    picture.paste("red", (0, 0, 100, 100))
    picture.save(tmp_path / "pictures" / "side.jpg", exif=exif, quality=95)
    done, _ = convert("side.jpg")
    with Image.open(tmp_path / "converted" / done.webp.path) as upright:
        assert upright.size == (100, 200)
        top, bottom = upright.convert("RGB").getpixel((50, 20)), upright.convert("RGB").getpixel((50, 180))
    assert top[0] > 200
    assert top[2] < 60
    assert bottom[2] > 200
    assert bottom[0] < 60
    assert (done.source.width, done.source.height) == (100, 200)
    assert images.describe("side.jpg") == done.source


def test_transparency_survives(tmp_path, image_settings):
    """A PNG with an alpha channel stays transparent."""
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "pictures" / "clear.png")
    done, _ = convert("clear.png")
    with Image.open(tmp_path / "converted" / done.webp.path) as picture:
        assert picture.convert("RGBA").getpixel((20, 20))[3] == 0


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.bmp"])
def test_a_picture_cut_short_is_broken_in_every_format(tmp_path, image_settings, name):
    """The error names the file, and nothing is written."""
    path = a_picture(tmp_path / "pictures" / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises((images.BrokenPictureError, images.NotAPictureError), match=name):
        convert(name)
    assert not list((tmp_path / "converted").rglob("*.*"))


def test_a_png_with_damaged_bytes_is_broken(tmp_path, image_settings):
    """Damage in the middle is found as well as a missing end."""
    path = a_picture(tmp_path / "pictures" / "bad.png")
    content = path.read_bytes()
    path.write_bytes(content[:3000] + bytes(400) + content[3400:])
    with pytest.raises(images.BrokenPictureError, match=r"bad\.png"):
        convert("bad.png")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_file_that_is_no_picture_is_told_so(tmp_path, image_settings, content):
    """Its name's ending does not count."""
    (tmp_path / "pictures" / "a.jpg").write_bytes(content)
    with pytest.raises(images.NotAPictureError, match=r"a\.jpg"):
        convert("a.jpg")


@pytest.mark.parametrize("factor", [1, 3])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, image_settings, monkeypatch, factor):
    """Just above the limit by our own check, far above it by Pillow's."""
    side = 100 * factor
    limit = image_settings(max_pixels=9_999).max_pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    Image.new("1", (side, side)).save(tmp_path / "pictures" / "bomb.png")
    with pytest.raises(images.LargePictureError, match=r"bomb\.png"):
        convert("bomb.png")


def test_a_picture_that_webp_cannot_hold_is_refused_by_name(tmp_path, image_settings):
    """16,383 pixels a side are its limit; the encoder's own words would not name the picture."""
    Image.new("1", (16_384, 16)).save(tmp_path / "pictures" / "panorama.png")
    with pytest.raises(images.LargePictureError, match=r"panorama\.png is 16384 x 16"):
        convert("panorama.png")
    Image.new("1", (16_383, 16)).save(tmp_path / "pictures" / "panorama.png")
    assert convert("panorama.png")[0].webp.width == 16_383


@pytest.mark.parametrize("source", ["missing.jpg", "../outside.jpg", "link.jpg", "", "."])
def test_only_files_inside_the_folder_are_read(tmp_path, image_settings, source):
    """Neither `..` nor a symbolic link leads out of it."""
    a_picture(tmp_path / "outside.jpg")
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(images.MissingPictureError, match="IMAGES_INPUT_DIR"):
        convert(source)


def test_pictures_in_sub_folders_and_of_one_stem_do_not_collide(tmp_path, image_settings):
    """Folder and ending are part of the new name."""
    (tmp_path / "pictures" / "sub").mkdir()
    for name in ("a.jpg", "a.png", "sub/a.jpg"):
        a_picture(tmp_path / "pictures" / name, size=(64, 64))
    assert len({convert(name)[0].webp.path for name in ("a.jpg", "a.png", "sub/a.jpg")}) == 3


def test_a_repeated_task_writes_the_same_files_again(tmp_path, image_settings):
    """Nothing is left beside them."""
    a_picture(tmp_path / "pictures" / "a.jpg")

    def files():
        return {str(path): path.read_bytes() for path in (tmp_path / "converted").rglob("*") if path.is_file()}

    convert("a.jpg")
    first = files()
    convert("a.jpg")
    assert files() == first
    assert len(first) == 3


def test_a_write_that_fails_leaves_neither_a_picture_nor_a_temporary_file(tmp_path, image_settings):
    """The target's name is taken by a folder, so the last step fails."""
    a_picture(tmp_path / "pictures" / "a.jpg")
    (tmp_path / "converted" / "webp" / "a.jpg.webp").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.jpg\.webp"):
        convert("a.jpg")
    assert [path.name for path in (tmp_path / "converted" / "webp").iterdir()] == ["a.jpg.webp"]


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, Retry), (errno.EIO, Retry), (errno.EACCES, OSError)])
def test_a_full_disk_is_worth_another_attempt_and_a_missing_permission_is_not(
    tmp_path, image_settings, monkeypatch, number, expected
):
    """The disk's error comes at the last moment; no temporary file stays."""

    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(images.os, "fsync", fsync)
    a_picture(tmp_path / "pictures" / "a.jpg")
    context = SimpleNamespace(cancelled=False, sync=SimpleNamespace(progress=lambda *_, **__: None))
    with pytest.raises(expected) as caught:
        images.convert(context, "a.jpg")
    assert (caught.value.__cause__ or caught.value).errno == number
    assert not [path for path in (tmp_path / "converted").rglob("*") if path.is_file()]
