"""Pictures as a person sees them, and a hash of what is seen.

Every picture passes `open_picture`: in training, on its way to a served teacher, and in the benchmarks.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.answers import AnswerLog
from engine.command import UserError, one_line

if TYPE_CHECKING:  # scoring needs the standard library and numpy alone, so pictures and bars are imported where used
    from PIL import Image


# ------------------------------------------------------------------------------------------------ what a person sees
def grey_levels(picture: "Image.Image") -> "Image.Image":
    """Grey values of 16 or 32 bits, or floats, as RGBA of 8 bits. Raises ValueError for NaN and infinity.

    16 bits: white is 65,535. Otherwise no file says what white is: we take 1 (floats), 255 or 65,535 (integers), the
    first that no value exceeds. With a value below 0 or above them all, the smallest is black and the largest white.
    """
    from PIL import Image

    values = np.asarray(picture).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():  # NaN passes through min and max
        raise ValueError("it holds NaN or infinity")
    is_16_bit = picture.mode.startswith("I;16") or picture.mode == "I" and picture.format in ("PPM", "PNG")
    whites = [65535] if is_16_bit else [1, 255] if picture.mode == "F" else [255, 65535]
    low, high = next(((0, white) for white in whites if low >= 0 and high <= white), (low, high))
    grey = Image.fromarray(np.rint((values - low) * (255 / (high - low or 1))).astype(np.uint8)).convert("RGBA")
    if isinstance(key := picture.info.get("transparency"), int):  # a PNG names the value that is transparent
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def turn_of(picture: "Image.Image") -> "Image.Transpose | None":
    """How EXIF asks to turn or mirror a picture; None: not at all."""
    from PIL.Image import Transpose as T

    turns = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
    turns |= {6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}
    try:
        return turns.get(picture.getexif().get(0x0112))
    except Exception:  # a damaged EXIF block, of which Pillow complains in many ways: viewers ignore it
        return None


def as_seen(picture: "Image.Image") -> "Image.Image":
    """A picture as a viewer shows it: RGB of 8 bits, turned as EXIF says, transparency on white; of several frames the
    first. What else a file holds, such as a colour profile, is not applied and not passed on.
    """
    from PIL import Image

    turn = turn_of(picture)
    if picture.mode == "RGB" and turn is None and not picture.info:
        return picture
    if picture.mode[0] in "IF":
        picture = grey_levels(picture)
    elif picture.has_transparency_data:
        picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture = picture if turn is None else picture.transpose(turn)
    picture.info = {}
    return picture


# ------------------------------------------------------------------------------------------------ opening
def foreign_kind(head: bytes) -> str:
    """What a file is that holds no picture of pixels, told by its first bytes; "": unknown."""
    if head[4:8] == b"ftyp" and head[8:11] != b"avi":  # AVIF can be read
        return "a HEIC photo or a video"
    if head.startswith(b"%PDF"):
        return "a PDF document"
    return "an SVG drawing" if b"<svg" in head.lower() else ""


def special_kind(path: str | Path) -> str:
    """What a path names that is no file, and whose opening may wait for ever; "": a file, or nothing is there."""
    with contextlib.suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            return "a folder" if stat.S_ISDIR(mode) else "a named pipe, a socket or a device"
    return ""


def refusal(source, error: Exception) -> str:
    """What is wrong with a picture that raised `error`, and the fix."""
    from PIL import Image

    if isinstance(error, FileNotFoundError):
        return "no such file; repair or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
    if isinstance(error, Image.UnidentifiedImageError):
        with open(source, "rb") if isinstance(source, str | Path) else contextlib.nullcontext(source) as file:
            file.seek(0)
            head = file.read(4096)
        if kind := foreign_kind(head):
            return f"is {kind}; convert it to PNG or JPEG"
        error = ValueError("unknown format" if head else "it is empty")
    return f"cannot be read as a picture ({one_line(error)}); repair or remove it"


def scale_transparent_level(picture: "Image.Image") -> None:
    """Mend a PNG before it is decoded: Pillow scales its levels of 2, 4 and 16 bits to 8, but not the one that the file
    calls transparent. (Of 16 bits in RGB the upper 8 are kept.)
    """
    key, raw = picture.info.get("transparency"), picture.tile[0][3] if picture.format == "PNG" and picture.tile else ""
    if isinstance(key, int):
        picture.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(raw, 1)
    elif isinstance(key, tuple) and raw == "RGB;16B":
        picture.info["transparency"] = tuple(level >> 8 for level in key)


def open_picture(source, who: str, view: Callable = as_seen) -> "Image.Image":
    """Read one picture (a path, its bytes in a BytesIO, or a PIL picture) completely, as `view` makes it.

    Raises UserError that names `who`, the picture and the fix.
    """
    from PIL import Image

    is_path = isinstance(source, str | Path)
    if is_path and (kind := special_kind(source)):
        raise UserError(f"{who}: {source}: is {kind}; give a picture file")
    try:
        with contextlib.nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as picture:
            scale_transparent_level(picture)
            picture.load()
            if not all(picture.size):
                raise ValueError("it has no pixels")
            return view(picture)
    except Exception as error:  # Pillow's readers raise anything, from struct.error to IndexError, for a damaged file
        raise UserError(f"{who}: {f'{source}:' if is_path else 'its picture'} {refusal(source, error)}") from None


# ------------------------------------------------------------------------------------------------ hashes
def picture_hash(picture: "Image.Image") -> str:
    """A hash of a picture's size and pixels: the same for every copy, name and lossless file format."""
    return hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).hexdigest()


def known_hashes() -> AnswerLog:
    """The hashes that this machine has made, {(path, size in bytes, time of change): row}.

    They lie in the user's cache folder, or nowhere where that cannot be written. Another Pillow may decode otherwise,
    so it has its own file.
    """
    import PIL

    names = "path", "bytes", "changed"
    try:
        file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"nanoril/pictures-{PIL.__version__}"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file := file.with_name(file.name + ".jsonl")).open("ab").close()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return AnswerLog(None, *names)
    return AnswerLog(file, *names)


def hash_pictures(pictures: list[tuple[str, str]]) -> list[str]:
    """The hash of every (path, who) in their order. Raises UserError that names the first that cannot be read.

    One that was hashed before, on this machine at this size and time of change, is not decoded again.
    """
    from tqdm import tqdm

    known, out = known_hashes(), []

    def row_of(picture: tuple[str, str]) -> dict:
        path, who = picture
        try:
            now = os.stat(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{who}: {path}: {refusal(path, error)}") from None
        # of the two times the later one: a copy may keep the time at which the original's content changed
        key = os.path.realpath(path), now.st_size, max(now.st_mtime_ns, now.st_ctime_ns)
        if key in known:
            return known[key]
        return dict(path=key[0], bytes=key[1], changed=key[2], hash=picture_hash(open_picture(path, who)))

    with ThreadPoolExecutor(8) as pool:
        others = os.environ.get("RANK", "0") != "0"
        rows = iter(tqdm(pool.map(row_of, pictures), "pictures", len(pictures), delay=2, disable=others))
        while part := list(islice(rows, 256)):
            out += [row["hash"] for row in part]
            with contextlib.suppress(OSError):  # the disk is full: go on without
                known.add(row for row in part if known.key_of(row) not in known)
    return out
