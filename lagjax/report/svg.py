"""Makes a matplotlib figure fit to sit inside a page: no document around it, no clashing ids, colours left to the page."""

import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins that matplotlib carries through untouched. The page replaces each by a CSS variable, so that one drawing serves
# light and dark.
NAMES = (
    "ink",
    "muted",
    "line",
    "surface",
    "winner",
    "runner",
    "start",
    "other",
    "control",
    "failed",
    "source",
)
COLOURS = {name: f"#0102{number:02x}" for number, name in enumerate(NAMES, 1)}

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "lagjax",  # ids are the same each time
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "DejaVu Sans",  # comes with matplotlib, and is wider than the fonts of browsers: what fits here fits there
}


def inline(figure: "Figure", prefix: str, label: str) -> str:
    """The figure as one <svg> element; `prefix` is a word that no other picture on the page has, `label` is read aloud."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    body = text[text.index(">", text.index("<svg")) + 1 :]
    # It styles `*`, which inside a page means the whole page; style.py says the same of charts only.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    # Only inside tags: a candidate's name may look like anything.
    body = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], prefix), body)
    body = re.sub(r"\s*\n\s*", " ", body)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(label)}">{body.strip()}'
    )


def _tag(tag: str, prefix: str) -> str:
    tag = tag.replace(' id="', f' id="{prefix}-')
    tag = tag.replace('xlink:href="#', f'href="#{prefix}-')
    tag = tag.replace('"url(#', f'"url(#{prefix}-')
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r" transform=\"rotate\(-?0 [^)]*\)\"", "", tag)
    for name, colour in COLOURS.items():
        tag = tag.replace(f": {colour}", f": var(--{name})")
    return tag
