"""Answers to questions about a scene, worked out from its caption alone."""

import re

from dyvte.tiny.scenes import COLORS, POSITIONS

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {word: str(number) for number, word in enumerate(NUMBERS)}
STEPS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
LINES = {"top row": (0, 1, 2), "middle row": (3, 4, 5), "bottom row": (6, 7, 8),
         "left column": (0, 3, 6), "center column": (1, 4, 7), "right column": (2, 5, 8)}  # fmt: skip
PLACE, COLOR = f"({'|'.join(sorted(POSITIONS, key=len, reverse=True))})", f"({'|'.join(COLORS)})"
SIDE, LINE = f"({'|'.join(STEPS)})", f"({'|'.join(LINES)})"


class Seen:
    """What a caption such as "top left red 3, center blue 7" says, and answers worked out from that alone."""

    def __init__(self, caption: str) -> None:
        parts = [re.fullmatch(rf"{PLACE} {COLOR} (\d)", part) for part in caption.split(", ")]
        self.caption = caption
        self.cells = {POSITIONS.index(p[1]): (p[2], p[3]) for p in parts if p}
        assert len(self.cells) == len(parts)

    def cell(self, color: str | None = None, digit: str | None = None) -> int:
        """The only cell with this color and digit."""
        (found,) = [k for k, (c, d) in self.cells.items() if color in (None, c) and digit in (None, d)]
        return found

    def at(self, place: str) -> str:
        return self.cells[POSITIONS.index(place)][1]

    def count(self, color: str) -> str:
        return str(sum(c == color for c, _ in self.cells.values()))

    def next_to(self, side: str, color: str, digit: str) -> str:
        row, column = divmod(self.cell(color, digit), 3)
        return self.cells[3 * (row + STEPS[side][0]) + column + STEPS[side][1]][1]

    def beyond(self, side: str, color: str, digit: str) -> str:
        row, column = divmod(self.cell(color, digit), 3)
        up, right = STEPS[side]
        return str(sum((k // 3 - row) * up + (k % 3 - column) * right > 0 for k in self.cells))

    def line(self, name: str) -> str:
        return " ".join(self.cells[k][1] for k in LINES[name] if k in self.cells)

    def total(self, one: str, other: str) -> str:
        return str(sum(int(self.cells[self.cell(color)][1]) for color in (one, other)))


def yes(claim: bool) -> str:
    return "yes" if claim else "no"


def parity(digit: str) -> str:
    return ("even", "odd")[int(digit) % 2]


RULES = {
    rf"What digit is in the {PLACE}\?": Seen.at,
    rf"What color is the digit in the {PLACE}\?": lambda s, p: s.cells[POSITIONS.index(p)][0],
    r"What color is the (\d)\?": lambda s, d: s.cells[s.cell(digit=d)][0],
    rf"What digit is {COLOR}\?": lambda s, c: s.cells[s.cell(c)][1],
    rf"Where is the {COLOR} (\d)\?": lambda s, c, d: POSITIONS[s.cell(c, d)],
    rf"How many digits are {COLOR}\?": Seen.count,
    r"How many digits are there\?": lambda s: str(len(s.cells)),
    rf"What digit is directly {SIDE} the {COLOR} (\d)\?": Seen.next_to,
    rf"How many digits are {SIDE} the {COLOR} (\d)\?": Seen.beyond,
    r"Which digit is higher, (\d) or (\d)\?": lambda s, a, b: min(a, b, key=lambda d: s.cell(digit=d) // 3),
    rf"Read the digits in the {LINE}\.": Seen.line,
    rf"Which digit is larger, {PLACE} or {PLACE}\?": lambda s, p, q: max(s.at(p), s.at(q)),
    rf"Is the digit in the {PLACE} even or odd\?": lambda s, p: parity(s.at(p)),
    rf"What is the {COLOR} digit plus the {COLOR} digit\?": Seen.total,
    r"What is (\d) plus (\d)\?": lambda s, a, b: str(int(a) + int(b)),
    r"Which is larger, (\d) or (\d)\?": lambda s, a, b: max(a, b),
    r"Is (\d) even or odd\?": lambda s, d: parity(d),
    r"Describe the image\.": lambda s: s.caption,
    rf"Is there a {COLOR} (\d) in the image\?": lambda s, c, d: yes((c, d) in s.cells.values()),
    rf"Is there a {COLOR} ([a-z]+) in the image\?": lambda s, c, w: yes((c, WORDS[w]) in s.cells.values()),
    rf"Is there a {COLOR} (\d) in the {PLACE}\?": lambda s, c, d, p: yes(
        s.cells.get(POSITIONS.index(p)) == (c, d)
    ),
    r"Are there (\d+) digits in the image\?": lambda s, n: yes(int(n) == len(s.cells)),
    rf"Do the digits in the {LINE} read ([\d ]+)\?": lambda s, name, read: yes(s.line(name) == read),
    rf"Is the digit in the {PLACE} (even|odd)\?": lambda s, p, said: yes(parity(s.at(p)) == said),
    rf"Is the {COLOR} digit plus the {COLOR} digit (\d+)\?": lambda s, c, d, n: yes(s.total(c, d) == n),
    r"Is grid\[(\d)\]\[(\d)\] == (\d)\?": lambda s, r, c, d: yes(s.cells[3 * int(r) + int(c)][1] == d),
}


def solve(seen: Seen, text: str) -> str:
    (answer,) = [rule(seen, *m.groups()) for form, rule in RULES.items() if (m := re.fullmatch(form, text))]
    return answer
