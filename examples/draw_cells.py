"""Draws a folder of blood cells, to try a federation of hospitals without images of patients.

    python examples/draw_cells.py cells

Four classes are uneven: most cells are neutrophils, few are basophils. Four sites have uneven numbers of cells and stain in
their own colors. Cells have different sizes. ``experiments/blood_cells.toml`` trains on the folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

LABELED = {"neutrophil": 30, "lymphocyte": 18, "eosinophil": 8, "basophil": 4}
"""Images of each class that somebody has labeled, at all sites together."""

TEST = {"neutrophil": 150, "lymphocyte": 90, "eosinophil": 45, "basophil": 30}
"""Test images of each class."""

UNLABELED = 800
"""Images that nobody has labeled; their classes are as uneven as the labeled ones."""

SHARES = (0.4, 0.3, 0.2, 0.1)
"""Share of the cells that each site has."""

SITES = {
    "site_a": (0, 0, 0),
    "site_b": (-25, 5, 15),
    "site_c": (15, -20, -10),
    "site_d": (-10, -15, 30),
}
"""Every site, and what its stain adds to red, green and blue."""

INKS = {
    "neutrophil": (120, 70, 150),
    "lymphocyte": (80, 50, 140),
    "eosinophil": (170, 90, 110),
    "basophil": (80, 50, 120),
}
"""The color of each class's nucleus or granules."""


def draw_cell(kind: str, stain: Sequence[int], rng: np.random.Generator) -> Image.Image:
    """Return one cell on a pale background, 40 to 72 pixels wide."""
    side = int(rng.integers(40, 73))
    picture = Image.new("RGB", (side, side), _stained((232, 214, 220), stain))
    pen = ImageDraw.Draw(picture)
    center = side / 2 + rng.uniform(-0.08, 0.08, 2) * side
    radius = side * rng.uniform(0.28, 0.4)
    _disc(pen, center, radius, _stained((205, 180, 200), stain))
    nucleus = _stained((110, 70, 150), stain)
    ink = _stained(np.asarray(INKS[kind]) + rng.integers(-20, 21, 3), stain)
    if kind == "lymphocyte":  # one round nucleus that fills the cell
        _disc(pen, center, radius * rng.uniform(0.7, 0.85), ink)
    lobes = {"neutrophil": 3, "eosinophil": 2}.get(kind, 0)
    turn = rng.uniform(0, 2 * np.pi)
    for lobe in range(lobes):
        angle = turn + lobe * 2 * np.pi / lobes
        place = center + radius * 0.42 * np.array([np.cos(angle), np.sin(angle)])
        _disc(pen, place, radius * 0.33, nucleus)
    if kind in ("eosinophil", "basophil"):  # granules: coarse and red, or dark and everywhere
        for _ in range(18 if kind == "eosinophil" else 34):
            place = center + radius * 0.85 * rng.uniform(-1, 1, 2) / np.sqrt(2)
            _disc(pen, place, radius * 0.08, ink)
    pixels = np.asarray(picture, dtype=np.float64) + rng.normal(0, 30, (side, side, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _disc(
    pen: ImageDraw.ImageDraw, center: np.ndarray, radius: float, color: tuple[int, int, int]
) -> None:
    x, y = center
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _stained(color: Sequence[int], stain: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.asarray(color) + np.asarray(stain), 0, 255).tolist()
    return red, green, blue


def draw_folder(root: Path, seed: int = 0, share: float = 1.0) -> None:
    """Write ``train/CLASS/SITE``, ``train/unlabeled/SITE`` and ``test/CLASS/SITE``.

    Args:
        root: The folder to make.
        seed: Seed of the drawing.
        share: Share of the images to draw, at least two of each class.
    """
    rng = np.random.default_rng(seed)
    sites, chances = list(SITES), np.array(list(LABELED.values())) / sum(LABELED.values())
    unlabeled = rng.choice(list(LABELED), round(UNLABELED * share), p=chances).tolist()
    parts = {
        "train": [
            (kind, kind) for kind, count in LABELED.items() for _ in range(_some(count, share))
        ],
        "test": [(kind, kind) for kind, count in TEST.items() for _ in range(_some(count, share))],
        "train/unlabeled": [("", kind) for kind in unlabeled],
    }
    for part, cells in parts.items():
        owners = rng.choice(sites, len(cells), p=SHARES).tolist()
        for number, ((folder, kind), site) in enumerate(zip(cells, owners, strict=True)):
            path = root / part / folder / site / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_cell(kind, SITES[site], rng).save(path)


def _some(count: int, share: float) -> int:
    return max(2, round(count * share))


if __name__ == "__main__":
    draw_folder(Path(sys.argv[1]))
