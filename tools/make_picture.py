"""Draws docs/pictures/pipeline-light.svg and pipeline-dark.svg: the idea of m3bind in one picture.

    python tools/make_picture.py

* `picture`: the drawing in one set of colours. Modalities keep the colours they have everywhere (`Modality.color`).
"""

from html import escape
from pathlib import Path

from m3bind import modalities

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
COLOURS = {
    "light": {
        "ink": "#1f2933",
        "soft": "#52606d",
        "line": "#9aa5b1",
        "card": "#f5f7f9",
        "space": "#e8f1fa",
    },
    "dark": {
        "ink": "#e4e9ee",
        "soft": "#a9b4bf",
        "line": "#66727f",
        "card": "#222b35",
        "space": "#1d3246",
    },
}
ROWS = (
    ("xray", "X-ray", "MGCA, GLoRIA ..."),
    ("ct", "CT", "CT-CLIP ..."),
    ("retina", "Retina", "FLAIR ..."),
    ("ecg", "ECG", "ECG-CLIP, MERL ..."),
    ("pathology", "Pathology", "QuiltNet, PLIP ..."),
)
TOP, STEP = 92, 66
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue, WCAG 2
CLUSTERS = (("pneumonia", 700, 142), ("normal", 762, 236), ("malignant", 722, 322))
SPOTS = ((-26, -4), (-10, 16), (4, -16), (18, 8), (30, -12))
USES = (
    ("Search", "by text, by any file"),
    ("Classify", "with your own labels"),
    ("Serve", "web page, API, PACS"),
    ("Export", "transformers, ONNX"),
)


def picture(colours: dict[str, str]) -> str:
    """The drawing as SVG."""
    drawn = [_heads(colours)]
    for number, (name, title, model) in enumerate(ROWS):
        drawn.append(_row(colours, TOP + number * STEP, modalities.get(name).color, title, model))
    drawn += [_binding(colours), _space(colours), _uses(colours)]
    style = (
        "text{font:14px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"
        ".b{font-weight:600}.s{font-size:12.5px}.m{text-anchor:middle}"
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 440" role="img">'
        "<title>How m3bind works</title><desc>Five modalities, each with its own image and text tower, are bound "
        "through their texts into one space, which is searched, classified, served and exported.</desc>"
        f'<style>{style}</style><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colours["line"]}"/></marker></defs>'
        f"{''.join(drawn)}</svg>\n"
    )


def _readable(colour: str) -> str:
    """White or near black, whichever has more contrast with a colour."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    light = sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip(LUMINANCE, parts))
    return "#fff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.055 else "#10161c"


def _text(x: float, y: float, words: str, colour: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" class="{kind}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str, line: str = "none", radius: int = 8) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{line}"/>'


def _arrow(colours: dict[str, str], path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="{colours["line"]}" stroke-width="1.6" marker-end="url(#tip)"/>'


def _heads(colours: dict[str, str]) -> str:
    heads = (
        (85, "Files and reports", "of any modality"),
        (285, "A CLIP-like model each", "yours, published, or stage 0"),
        (508, "Bound by their texts", "closed form, or stage 1"),
        (725, "One space", "one text encoder: stage 2"),
        (918, "Use", "without training code"),
    )
    return "".join(
        _text(x, 30, first, colours["ink"], "b m") + _text(x, 50, second, colours["soft"], "s m")
        for x, first, second in heads
    )


def _row(colours: dict[str, str], y: float, colour: str, title: str, model: str) -> str:
    text = _box(14, y - 22, 142, 46, colours["card"], colours["line"]) + _box(14, y - 22, 7, 46, colour, radius=3)
    text += _text(32, y - 2, title, colours["ink"], "b") + _text(32, y + 16, "image + text", colours["soft"], "s")
    text += _arrow(colours, f"M158 {y}H186")
    text += _box(190, y - 24, 190, 50, colours["card"], colours["line"])
    text += _box(198, y - 17, 84, 20, colour, radius=5) + _text(240, y - 2.5, "image tower", _readable(colour), "s m")
    text += _box(288, y - 17, 84, 20, "none", colour, radius=5) + _text(
        330, y - 2.5, "text tower", colours["ink"], "s m"
    )
    text += _text(285, y + 19, model, colours["soft"], "s m")
    return text + _arrow(colours, f"M382 {y}H428")


def _binding(colours: dict[str, str]) -> str:
    top, bottom = TOP - 24, TOP + 4 * STEP + 26
    text = _box(432, top, 152, bottom - top, colours["card"], colours["line"])
    lines = (
        ("The same texts go", 130), ("through every text", 149), ("tower.", 168),
        ("Their spaces are", 200), ("rotated and trained", 219), ("onto each other;", 238),
        ("images follow along.", 257),
        ("No patient needs", 292), ("two modalities.", 311),
    )  # fmt: skip
    text += "".join(_text(508, y, words, colours["ink"], "s m" if y < 290 else "s m b") for words, y in lines)
    return text + _arrow(colours, f"M586 {(top + bottom) / 2}H620")


def _space(colours: dict[str, str]) -> str:
    text = f'<ellipse cx="725" cy="224" rx="100" ry="158" fill="{colours["space"]}" stroke="{colours["line"]}"/>'
    for name, x, y in CLUSTERS:
        for (key, _, _), (dx, dy) in zip(ROWS, SPOTS):
            text += f'<circle cx="{x + dx}" cy="{y + dy}" r="6.5" fill="{modalities.get(key).color}"/>'
        text += _text(x, y + 40, f"“{name}”", colours["ink"], "s m")
    return text


def _uses(colours: dict[str, str]) -> str:
    text = ""
    for number, (title, words) in enumerate(USES):
        y = 112 + number * 74
        text += _arrow(colours, f"M{728 + 100 * (1 - ((y - 224) / 158) ** 2) ** 0.5:.0f} {y}H846")
        text += _box(850, y - 26, 140, 50, colours["card"], colours["line"])
        text += _text(920, y - 4, title, colours["ink"], "b m") + _text(920, y + 14, words, colours["soft"], "s m")
    return text + _text(
        500, 424, "An X-ray finds ECGs that were never paired with it, and text finds both.", colours["soft"], "m"
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, colours in COLOURS.items():
        (FOLDER / f"pipeline-{name}.svg").write_text(picture(colours), encoding="utf-8")
