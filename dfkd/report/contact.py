"""A bank to look at: one sheet with a row of draws for each class, and every draw as a PNG file of its own."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd.bank import read_index, shards
from dfkd.files import make_folder, replace_file
from dfkd.types import InputSpec

from .pictures import LARGEST, Pixels, png, shrink

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_png", "class_folders", "contact_sheet", "write_pngs"]

COLUMNS, MOST_ROWS = 12, 24
TILE, GAP, MARGIN, HEAD = 64, 4, 20, 58  # pixels
INK, SOFT, PAGE, EMPTY = "#17202b", "#566270", "#fcfcfb", "#eceeef"


def contact_sheet(folder: Path) -> Path:
    """Writes contact.png: the first draws that the teacher takes for each class, unselected, in the classes' order."""
    index = read_index(folder)
    shown = _shown(index["counts"])
    tiles: dict[int, list[Pixels]] = {label: [] for label in shown}
    for shard in shards(folder, index):
        for image, label in zip(shard["x"].numpy(), shard["label"].tolist(), strict=True):
            if label in tiles and len(tiles[label]) < COLUMNS:
                tiles[label].append(shrink(image))
    file = folder / "contact.png"
    content = io.BytesIO()
    _draw(index, tiles).save(content, "PNG")
    replace_file(file, content.getvalue())
    return file


def _shown(counts: list[int]) -> list[int]:
    """All classes where they are few; of many the first that have draws."""
    if len(counts) <= MOST_ROWS:
        return list(range(len(counts)))
    return [label for label, count in enumerate(counts) if count][:MOST_ROWS]


def _draw(index: Mapping[str, Any], tiles: Mapping[int, list[Pixels]]) -> "Image.Image":
    from PIL import Image, ImageDraw

    c, h, w = index["shape"]
    height, width = _tile(h, w)
    names = {label: _name(index, label) for label in tiles}
    bold, plain, small = _fonts()
    left = MARGIN + max([90, *(round(plain.getlength(name)) + 16 for name in names.values())])
    size = (
        max(left + COLUMNS * (width + GAP) - GAP + MARGIN, 2 * MARGIN + round(small.getlength(_subtitle(index)))),
        HEAD + MARGIN + len(tiles) * (height + GAP) - GAP + MARGIN,
    )
    sheet = Image.new("RGB", size, PAGE)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 14), _title(index), INK, bold)
    pen.text((MARGIN, 38), _subtitle(index), SOFT, small)
    for row, (label, images) in enumerate(tiles.items()):
        top = HEAD + MARGIN // 2 + row * (height + GAP)
        pen.text((MARGIN, top + height // 2 - 15), names[label], INK, plain)
        pen.text((MARGIN, top + height // 2 + 3), f"{index['counts'][label]} draws", SOFT, small)
        for column in range(COLUMNS):
            place = (left + column * (width + GAP), top)
            if column >= len(images):
                pen.rectangle((*place, place[0] + width - 1, top + height - 1), EMPTY)
                continue
            picture = images[column].transpose(1, 2, 0)
            tile = Image.fromarray(picture if c == 3 else picture[:, :, 0])
            sharp = Image.Resampling.NEAREST if tile.size[0] <= width else Image.Resampling.LANCZOS
            sheet.paste(tile.resize((width, height), sharp).convert("RGB"), place)
    return sheet


def _tile(h: int, w: int) -> tuple[int, int]:
    """Height and width of a tile: small images by a whole factor to about TILE, larger ones at most LARGEST."""
    side = max(h, w)
    factor = max(1, TILE // side) if side <= TILE else min(1.0, LARGEST / side)
    return max(1, round(h * factor)), max(1, round(w * factor))


def _title(index: Mapping[str, Any]) -> str:
    rows, wanted = index["rows"], index["wanted"]
    return f"{index['label']}: {rows} draws" + ("" if rows == wanted else f" of {wanted}")


def _subtitle(index: Mapping[str, Any]) -> str:
    named, known = sum(map(bool, index["counts"])), index["num_classes"]
    parts = ["rows: the class that the teacher names", f"{named} of {known} classes named"]
    if known > MOST_ROWS:
        parts.append(f"the first {min(named, MOST_ROWS)} shown")
    if index["as_aimed"] is not None:
        parts.append(f"{100 * index['as_aimed'] / index['rows']:.1f} % named as aimed")
    return " · ".join(parts)


def _name(index: Mapping[str, Any], label: int) -> str:
    names = index["class_names"]
    name = str(label) if names is None else str(names[label])
    return name if len(name) <= 24 else name[:23] + "…"


def _fonts() -> tuple[Any, Any, Any]:
    """Bold, plain and small, of a font that comes with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    named = (("DejaVuSans-Bold.ttf", 16), ("DejaVuSans.ttf", 14), ("DejaVuSans.ttf", 12))
    bold, plain, small = (ImageFont.truetype(str(fonts / name), size) for name, size in named)
    return bold, plain, small


# -- one file a draw ---------------------------------------------------------------------------------------------------


def class_folders(index: Mapping[str, Any]) -> list[str]:
    """A folder's name for each class, such that their order is that of the classes."""
    digits = len(str(index["num_classes"] - 1))
    found = []
    for label in range(index["num_classes"]):
        number, name = f"{label:0{digits}d}", "" if index["class_names"] is None else str(index["class_names"][label])
        safe = re.sub(r"[^\w.-]+", "_", name).strip("._")[:60]
        found.append(f"{number}-{safe}" if safe and name != str(label) else number)
    return found


def check_png(spec: InputSpec) -> None:
    """ValueError where PNG files cannot hold such images."""
    if spec.channels not in (1, 3):
        raise ValueError(f"--png: expected images of 1 or 3 channels, found {spec.channels}")


def write_pngs(folder: Path) -> Path:
    """Writes png/<class>/<row>.png, the class being the one that the teacher names; the folder `png`."""
    index = read_index(folder)
    places = [folder / "png" / name for name in class_folders(index)]
    for place in places:
        make_folder(place)
    row, digits = 0, len(str(index["wanted"] - 1))
    for shard in shards(folder, index):
        for image, label in zip(shard["x"].numpy(), shard["label"].tolist(), strict=True):
            content = png(np.ascontiguousarray(image))
            file = places[label] / f"{row:0{digits}d}.png"
            try:
                if not file.is_file() or file.read_bytes() != content:
                    file.write_bytes(content)  # one cut short is written again the next time
            except OSError as error:
                raise ValueError(f"--png: cannot write {file}: {error.strerror or error}") from error
            row += 1
    return folder / "png"
