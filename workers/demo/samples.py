"""Pictures to convert: the user's own, or landscapes painted for the purpose.

The painted ones are 4000 by 3000 pixels with the grain of a photograph, so that decoding and encoding them is as
much work as with a camera's. One more file is a picture cut short in the middle, as a broken upload leaves it.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from demo.settings import DemoError

SIZE = (4000, 3000)
TRUNCATED = "truncated-upload.jpg"
PALETTES = (  # sky above, sky at the horizon, near mountains
    ((38, 76, 140), (246, 196, 150), (24, 34, 44)),
    ((86, 150, 214), (226, 238, 244), (28, 62, 48)),
    ((30, 26, 66), (240, 124, 92), (18, 14, 32)),
    ((120, 152, 176), (240, 240, 232), (52, 66, 72)),
    ((22, 52, 84), (150, 202, 206), (8, 24, 34)),
    ((92, 60, 110), (252, 214, 170), (44, 28, 52)),
)


def paint_all(folder: Path, count: int) -> list[str]:
    """Paint landscapes into a folder and return the files' names."""
    names = [f"landscape-{number}.jpg" for number in range(1, count + 1)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:  # Pillow releases the interpreter's lock
        list(threads.map(lambda number: paint(folder / names[number], seed=number), range(count)))
    return names


def paint(path: Path, *, seed: int, size: tuple[int, int] = SIZE) -> None:
    """Paint one landscape; the same seed makes the same picture."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    above, horizon, near = PALETTES[seed % len(PALETTES)]
    width, height = size[0] // 2, size[1] // 2
    ramp = Image.linear_gradient("L").point([min(255, round(1.7 * level)) for level in range(256)])
    ramp = ramp.resize((width, height), Image.Resampling.BICUBIC)
    picture = ImageOps.colorize(ramp, above, horizon)
    sun, radius = (chance.uniform(0.2, 0.8) * width, chance.uniform(0.25, 0.5) * height), height // 14
    glow = Image.new("L", (width // 8, height // 8))
    box = [(sun[0] - 2 * radius) / 8, (sun[1] - 2 * radius) / 8, (sun[0] + 2 * radius) / 8, (sun[1] + 2 * radius) / 8]
    ImageDraw.Draw(glow).ellipse(box, fill=190)
    glow = glow.filter(ImageFilter.GaussianBlur(radius / 8)).resize((width, height), Image.Resampling.BICUBIC)
    picture.paste(Image.new("RGB", (width, height), (255, 244, 222)), mask=glow)
    layers = 6
    for layer in range(layers):
        nearness = (layer + 1) / layers
        colour = tuple(round(h + (n - h) * nearness) for h, n in zip(horizon, near, strict=True))
        line = ridge(chance, width, base=height * (0.45 + 0.5 * nearness), rise=height * (0.2 - 0.1 * nearness))
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon([(0, height), *line, (width, height)], fill=255)
        picture.paste(textured(chance, (width, height), colour), mask=mask)
    large = picture.resize(size, Image.Resampling.BICUBIC)
    patch, grain = Image.effect_noise((1000, 1000), 40), Image.new("L", size)
    for x, y in itertools.product(range(0, size[0], 1000), range(0, size[1], 1000)):
        grain.paste(patch, (x, y))
    Image.blend(large, Image.merge("RGB", (grain, grain, grain)), 0.07).save(path, quality=92)


def ridge(chance: random.Random, width: int, *, base: float, rise: float) -> list[tuple[float, float]]:
    """Return a mountain ridge as points from left to right: waves, each half as high and twice as steep."""
    waves = [(2**n * chance.uniform(0.8, 1.2), chance.uniform(0, 2 * math.pi), 0.55**n) for n in range(9)]
    return [
        (x, base - rise * sum(high * math.sin(2 * math.pi * often * x / width + start) for often, start, high in waves))
        for x in range(0, width + 1, 2)
    ]


def textured(chance: random.Random, size: tuple[int, int], colour: tuple[int, ...]) -> Image.Image:
    """Return a plain of one colour with light and shade in it, as slopes with trees have."""
    coarse, fine = (
        Image.frombytes("L", cells, chance.randbytes(cells[0] * cells[1])).resize(size, Image.Resampling.BICUBIC)
        for cells in ((40, 60), (500, 400))
    )
    dark, light = (tuple(min(255, round(part * factor)) for part in colour) for factor in (0.75, 1.25))
    return ImageOps.colorize(Image.blend(coarse, fine, 0.5), dark, light)


def take_all(source: Path, folder: Path) -> list[str]:
    """Bring the user's pictures into a folder (as hard links where that is possible) and return their names.

    Raises:
        DemoError: There is no such folder, or no picture in it.
    """
    if not source.is_dir():
        raise DemoError(f"PICTURES={source} is no folder.")
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    names: list[str] = []
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in known or not path.is_file():
            continue
        # A name in another encoding than UTF-8 is legal on disk and cannot be written as JSON.
        name = os.fsencode(path.relative_to(source).as_posix()).decode(errors="replace")
        if name in names:
            name = f"{len(names)}-{name.replace('/', '-')}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(path.resolve())
        except OSError:  # another file system
            shutil.copyfile(path, target)
        names.append(name)
    if not names:
        raise DemoError(f"PICTURES={source} holds no picture.")
    return names


def make_whole(folder: Path, names: list[str]) -> None:
    """Put the whole picture in the place of the one that was cut short."""
    target = folder / TRUNCATED
    half = target.read_bytes()
    whole = next((content for name in names if (content := (folder / name).read_bytes()).startswith(half)), None)
    temporary = target.with_name(f".{TRUNCATED}.part")
    if whole is None:  # it was painted for the purpose
        paint(temporary.with_suffix(".jpg"), seed=0)
        temporary.with_suffix(".jpg").replace(target)
    else:
        temporary.write_bytes(whole)
        temporary.replace(target)


def readable(path: Path) -> bool:
    """Tell whether Pillow can say what a picture is."""
    try:
        with Image.open(path) as picture:
            picture.getexif()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def decodes(path: Path) -> bool:
    """Tell whether Pillow can decode a picture to its end."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def cut_short(folder: Path, names: list[str]) -> str:
    """Write the first half of a JPEG picture as one more picture, and return its name."""
    target = folder / TRUNCATED
    for name in names:
        if not name.lower().endswith((".jpg", ".jpeg")):
            continue
        content = (folder / name).read_bytes()
        target.write_bytes(content[: len(content) // 2])
        if readable(target) and not decodes(target):
            return TRUNCATED
    paint(target, seed=0)  # the user has no sound JPEG: paint one
    content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    return TRUNCATED
