"""Draws docs/architecture.svg, the picture of the README: `python docs/architecture_svg.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 980, 566
INK, SOFT, PAPER, RULE = "#1f2a37", "#566171", "#ffffff", "#d5dae1"
GREEN, AMBER, PURPLE, BLUE, GREY = "#2f855a", "#b7791f", "#6b46c1", "#2b6cb0", "#4a5568"
ZONES = [
    # x, y, width, height, fill, title
    (20, 20, 290, 410, "#eef6f1", "Hospitals: no open port"),
    (350, 20, 250, 410, "#f5f5f7", "Servers: cannot decrypt"),
    (640, 20, 320, 410, "#edf3fb", "Hub"),
]
BOXES = [
    # x, y, width, height, colour, title, lines
    (38, 62, 254, 104, GREEN, "Worker, hospital north", ["trains where the data are;", "filters, encrypts, signs"]),
    (
        38,
        186,
        254,
        104,
        GREEN,
        "Worker, hospital south",
        ["slow: updates weigh less,", "the others do not wait for it"],
    ),
    (38, 310, 254, 104, GREEN, "Worker, hospital west", ["was away for a week: goes on", "from the newest version"]),
    (372, 78, 206, 116, PURPLE, "S3 object store", ["encrypted chunks of", "updates and versions"]),
    (372, 262, 206, 116, AMBER, "RabbitMQ", ["signed notices, receipts,", "announcements, commands"]),
    (
        *(664, 62, 272, 204, BLUE, "Aggregator"),
        [
            *("checks each signature", "writes one row, acknowledges", "admits or refuses, with a receipt"),
            *("merges, weighted by age", "announces the next version"),
        ],
    ),
    (664, 318, 272, 96, BLUE, "Journal", ["each update, weight and receipt:", "any version rebuilt byte by byte"]),
    (20, 466, 290, 80, GREY, "Provisioner, kept offline", ["root keys sign the list of members"]),
    (350, 466, 250, 80, GREY, "Operator's laptop", ["signed commands, runs, models"]),
]
ARROWS = [
    # x, y of both ends, colour, heads at the start and at the end, dashed
    *((292, y, 368, 106 + 26 * n, PURPLE, True, True, False) for n, y in enumerate((96, 220, 344))),
    *((292, y, 368, 296 + 26 * n, AMBER, True, True, False) for n, y in enumerate((134, 258, 382))),
    (582, 136, 660, 136, PURPLE, True, True, False),
    (582, 320, 660, 232, AMBER, True, True, False),
    (800, 266, 800, 314, BLUE, True, True, False),
    (475, 466, 475, 382, AMBER, True, True, False),
    (165, 466, 165, 434, GREY, False, True, True),
]
LEGEND = [
    # x and y of the line, colour, dashed, words
    (660, 486, PURPLE, False, "tensors, signed and encrypted"),
    (660, 510, AMBER, False, "messages, signed"),
    (660, 534, GREY, True, "startup kits: keys, certificates"),
]


def text(x: float, y: float, words: str, *, size: int = 14, colour: str = SOFT, bold: bool = False) -> str:
    """One line of text that begins at `x`."""
    weight = " font-weight='600'" if bold else ""
    return f"<text x='{x}' y='{y}' font-size='{size}' fill='{colour}'{weight}>{escape(words)}</text>"


def box(x: int, y: int, width: int, height: int, colour: str, title: str, lines: list[str]) -> str:
    """A card with a coloured edge, a title and lines below it, in the middle of its height."""
    top = y + (height - 22 - 22 * len(lines)) / 2 + 17
    return "\n".join(
        [
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{PAPER}' stroke='{RULE}'/>",
            f"<rect x='{x}' y='{y + 10}' width='4' height='{height - 20}' rx='2' fill='{colour}'/>",
            text(x + 18, top, title, size=16, colour=INK, bold=True),
            *(text(x + 18, top + 22 * number, line) for number, line in enumerate(lines, 1)),
        ]
    )


def line(x: int, y: int, to_x: int, to_y: int, colour: str, start: bool, end: bool, dashed: bool) -> str:
    """A line with arrow heads at either end."""
    name = colour.removeprefix("#")
    marks = f" marker-start='url(#{name})'" * start + f" marker-end='url(#{name})'" * end
    marks += " stroke-dasharray='5 4'" * dashed
    return f"<path d='M{x} {y}L{to_x} {to_y}' stroke='{colour}' stroke-width='2' fill='none'{marks}/>"


def picture() -> str:
    """The whole picture as SVG."""
    heads = [
        f"<marker id='{colour.removeprefix('#')}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='5' markerHeight='5' "
        f"orient='auto-start-reverse'><path d='M0 0L8 4L0 8z' fill='{colour}'/></marker>"
        for colour in sorted({arrow[4] for arrow in ARROWS})
    ]
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' "
        "font-family='Helvetica, Arial, DejaVu Sans, sans-serif' role='img'>",
        "<title>Workers at hospitals, RabbitMQ and an S3 store, and the aggregator with its journal</title>",
        f"<defs>{''.join(heads)}</defs>",
        f"<rect width='{WIDTH}' height='{HEIGHT}' rx='12' fill='{PAPER}'/>",
    ]
    for x, y, width, height, fill, title in ZONES:
        parts.append(f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='10' fill='{fill}'/>")
        parts.append(text(x + 18, y + 27, title, colour=SOFT, bold=True))
    parts += [box(*each) for each in BOXES]
    parts += [line(*arrow) for arrow in ARROWS]
    for x, y, colour, dashed, words in LEGEND:
        parts.append(line(x, y, x + 40, y, colour, False, False, dashed))
        parts.append(text(x + 54, y + 5, words))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(picture(), encoding="utf-8")
