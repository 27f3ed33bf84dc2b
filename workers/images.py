"""Convert pictures: WebP in full size, and thumbnails.

Decoding and encoding are blocking work, so the tasks are `def` functions and run in threads; Pillow releases
the interpreter's lock while it works.

- A file that is no picture, or is cut short, fails at its first attempt: it would not get better.
- A full disk or a network drive that is away is not the picture's fault: another attempt later.
- A picture appears under its name when it is complete, and not before (temporary file, then rename). Its name
  follows from the source's alone, so a repeated task writes the same files again.

Run it with `asyncq worker images:app` in this folder. Its settings are environment variables, `IMAGES_*`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Exponential, Retry, RetryPolicy, TaskContext

PASSING_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENETDOWN, errno.EHOSTDOWN}
WEBP_MAX_SIDE = 16383

Step = Callable[[int, int, str], None]


class ImagesSettings(BaseSettings):
    """What the environment says, for example `IMAGES_INPUT_DIR=/srv/pictures`.

    Attributes:
        input_dir: Only pictures inside this folder are read.
        output_dir: Gets `webp/NAME.webp` and `thumbnails/EDGE/NAME.webp`, NAME with folders and ending.
        thumbnail_edges: The longer edges of the thumbnails, in pixels.
        webp_quality: 1 to 100.
        webp_effort: From 0 (fast) to 6 (small files).
        max_pixels: Larger pictures are refused before they are decoded: a few kilobytes of PNG can become
            gigabytes of pixels.
        time_limit_s: How long one attempt may take, in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="IMAGES_", frozen=True)

    input_dir: Path = Path("pictures")
    output_dir: Path = Path("converted")
    thumbnail_edges: tuple[Annotated[int, Field(ge=16, le=4096)], ...] = (320, 1024)
    webp_quality: Annotated[int, Field(ge=1, le=100)] = 80
    webp_effort: Annotated[int, Field(ge=0, le=6)] = 4
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000
    time_limit_s: Annotated[float, Field(gt=0)] = 300


class PictureError(Exception):
    """A picture cannot be used. Another attempt would not change that."""


class MissingPictureError(PictureError):
    """There is no such file in the input folder."""


class NotAPictureError(PictureError):
    """Pillow does not know this kind of file."""


class BrokenPictureError(PictureError):
    """The file begins as a picture, but cannot be decoded to its end."""


class LargePictureError(PictureError):
    """The picture has more pixels than `IMAGES_MAX_PIXELS`, or than WebP can hold."""


class PictureFacts(BaseModel):
    """What a picture file says about itself.

    Attributes:
        source: The file, relative to the input folder.
        format: `JPEG`, `PNG` and so on.
        width: As it is to be shown, in pixels.
        height: As it is to be shown, in pixels.
        size_bytes: The file's size.
    """

    source: str
    format: str
    width: int
    height: int
    size_bytes: int


class OutputFile(BaseModel):
    """A picture that was written.

    Attributes:
        path: Relative to the output folder.
        width: In pixels.
        height: In pixels.
        size_bytes: The file's size.
    """

    path: str
    width: int
    height: int
    size_bytes: int


class Converted(BaseModel):
    """What became of one picture.

    Attributes:
        source: What was read.
        webp: The picture in full size.
        thumbnails: One for each of `IMAGES_THUMBNAIL_EDGES`, in that order.
        seconds: How long it took.
    """

    source: PictureFacts
    webp: OutputFile
    thumbnails: list[OutputFile]
    seconds: float


settings = ImagesSettings()
app = AsyncQ("images")

# Pillow's own guard refuses twice this many, and only warns before that; `opened` is stricter.
Image.MAX_IMAGE_PIXELS = settings.max_pixels
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@app.task(
    pass_context=True,
    # An empty `on`: only what the task raises as Retry is tried again.
    retry=RetryPolicy(on=(), max_attempts=5, backoff=Exponential(first=10, factor=3, max=600)),
    time_limit=settings.time_limit_s,
)
def convert(ctx: TaskContext, source: str) -> Converted:
    """Write one picture as WebP, in full size and as thumbnails.

    Args:
        ctx: The running task.
        source: The picture, relative to `IMAGES_INPUT_DIR`.

    Returns:
        What was read and written.

    Raises:
        PictureError: The picture cannot be used.
        InterruptedError: The time is up, or the worker stops.
        Retry: Disk or network drive are in trouble.
    """

    def step(done: int, total: int, label: str) -> None:
        if ctx.cancelled:  # nobody can stop a thread from outside; the worker knows already what follows
            raise InterruptedError(f"{source}: told to stop before {label!r}")
        ctx.sync.progress(done, total, label=label)

    try:
        return convert_picture(source, step)
    except OSError as exc:
        if exc.errno in PASSING_ERRORS:
            raise Retry(f"{source}: {exc}") from exc
        raise


@app.task(time_limit=settings.time_limit_s)
def describe(source: str) -> PictureFacts:
    """Say what a picture is, without decoding it.

    Args:
        source: The picture, relative to `IMAGES_INPUT_DIR`.

    Returns:
        Its format, size and dimensions.

    Raises:
        PictureError: The picture cannot be used.
    """
    path = find(source)
    with opened(path, source) as picture:
        return facts(picture, path, source)


def convert_picture(source: str, step: Step) -> Converted:
    """Do the work of `convert`; `step(done, total, label)` is called before each part and at the end."""
    started = perf_counter()
    total = 2 + len(settings.thumbnail_edges)
    path = find(source)
    step(0, total, "decoding")
    with opened(path, source) as picture:
        read = facts(picture, path, source)
        if max(picture.size) > WEBP_MAX_SIDE:
            raise LargePictureError(f"{source} is {read.width} x {read.height}; WebP holds {WEBP_MAX_SIDE} a side")
        upright = decode(picture)
    step(1, total, "WebP")
    webp = write(upright, Path("webp", f"{source}.webp"))
    thumbnails: list[OutputFile] = []
    for done, edge in enumerate(settings.thumbnail_edges, start=2):
        step(done, total, f"thumbnail {edge}")
        small = upright.copy()
        small.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=3)
        thumbnails.append(write(small, Path("thumbnails", str(edge), f"{source}.webp")))
    step(total, total, "done")
    return Converted(source=read, webp=webp, thumbnails=thumbnails, seconds=round(perf_counter() - started, 3))


def find(source: str) -> Path:
    """Return the picture's path.

    Raises:
        MissingPictureError: It is missing or outside the input folder (symbolic links are followed first).
    """
    folder = settings.input_dir.resolve()
    path = (folder / source).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise MissingPictureError(f"there is no file {source!r} in {folder} (IMAGES_INPUT_DIR)")
    return path


@contextlib.contextmanager
def opened(path: Path, source: str) -> Iterator[Image.Image]:
    """Open a picture; what Pillow raises while it is open is told apart here.

    Raises:
        NotAPictureError: No format that Pillow knows.
        LargePictureError: More pixels than allowed.
        BrokenPictureError: The file is cut short or damaged.
        OSError: The file could not be read; it has an error number then.
    """
    try:
        with Image.open(path) as picture:
            pixels = picture.width * picture.height
            if pixels > settings.max_pixels:
                raise LargePictureError(
                    f"{source} has {pixels} pixels, more than {settings.max_pixels} (IMAGES_MAX_PIXELS)"
                )
            yield picture
    except UnidentifiedImageError as exc:
        raise NotAPictureError(f"{source} is no picture of a format that is known here") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise LargePictureError(f"{source}: {exc}") from exc
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise BrokenPictureError(f"{source} cannot be decoded: {exc}") from exc
    except (ValueError, SyntaxError) as exc:  # what Pillow raises on some damaged files
        raise BrokenPictureError(f"{source} cannot be decoded: {exc}") from exc


def facts(picture: Image.Image, path: Path, source: str) -> PictureFacts:
    """Return what the file says about itself, turned as it is to be shown."""
    lies_on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) in {5, 6, 7, 8}
    width, height = (picture.height, picture.width) if lies_on_its_side else (picture.width, picture.height)
    return PictureFacts(
        source=source,
        format=picture.format or "unknown",
        width=width,
        height=height,
        size_bytes=path.stat().st_size,
    )


def decode(picture: Image.Image) -> Image.Image:
    """Return the pixels, upright, as RGB or RGBA."""
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    return upright.convert("RGBA" if upright.has_transparency_data else "RGB")


def write(picture: Image.Image, name: Path) -> OutputFile:
    """Write a picture as WebP under its name in the output folder, completely or not at all."""
    target = settings.output_dir / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a redelivered task may run while its first attempt still writes.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            picture.save(file, "WEBP", quality=settings.webp_quality, method=settings.webp_effort)
            file.flush()
            os.fsync(file.fileno())
        size_bytes = temporary.stat().st_size
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return OutputFile(path=name.as_posix(), width=picture.width, height=picture.height, size_bytes=size_bytes)
