"""Text as people have it: Latin-1, UTF-16, a .gz, a folder of links, a path with an umlaut.

Either the text is read, or the user is told that it is not; what is trained on is said in a line.
"""

import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

CHECKOUT = pathlib.Path(__file__).parents[3]
TEXT = (
    "der Müller grüßt die schöne Frau über den Fluß und läuft während des Frühlings nach Köln "
    "für große Äpfel"
)
TINY = [
    "--layers", "1", "--grown-layers", "2", "--width", "16", "--heads", "2", "--window", "16",
    "--batch", "4", "--source-steps", "20", "--horizon", "20", "--lag", "8", "--shards", "4",
    "--compare", "none", "--candidates-at-once", "1",
]  # fmt: skip
TELLS = ("utf", "skip", "left out", "link", "gz", "binary", "nul", "quickstart:")


def novel(seed, count=9000):
    draw = np.random.default_rng(seed)
    words = TEXT.split()
    return " ".join(words[i] for i in draw.integers(len(words), size=count)) + "\r\n"


def latin(root):
    folder = root / "novels"
    folder.mkdir()
    for number in range(9):
        (folder / f"novel {number}.txt").write_bytes(novel(number).encode("latin-1"))
    (folder / "note.txt").write_text(novel(99), encoding="utf-8")
    return folder


def utf16(root):
    (root / "exported.txt").write_bytes(novel(1, 20000).encode("utf-16"))
    return root / "exported.txt"


def zipped(root):
    text = "".join(novel(number, 30000) for number in range(8))
    (root / "novels.txt.gz").write_bytes(gzip.compress(text.encode()))
    return root / "novels.txt.gz"


def links(root):
    """A folder whose books are links to folders elsewhere, and one file of its own."""
    (root / "books").mkdir()
    for number in range(4):
        volume = root / "elsewhere" / f"volume {number}"
        volume.mkdir(parents=True)
        (volume / "text.txt").write_text(novel(number), encoding="utf-8")
        (root / "books" / volume.name).symlink_to(volume)
    (root / "books" / "readme.txt").write_text(novel(50), encoding="utf-8")
    return root / "books"


def with_bom(root):
    (root / "e ü").mkdir()
    text = b"\xef\xbb\xbf" + novel(3, 20000).encode()
    (root / "e ü" / "x y.txt").write_bytes(text)
    return root / "e ü"


@pytest.mark.slow
@pytest.mark.parametrize("make", [latin, utf16, zipped, links, with_bom])
def test_is_read_or_said_not_to_be(make, tmp_path):
    data, run = make(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "experiments.quickstart", *TINY]
    command += ["--data", str(data), "--workdir", str(run)]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False
    )
    said = [
        line
        for line in (done.stderr + done.stdout).lower().splitlines()
        if any(word in line for word in TELLS)
    ]
    if make is with_bom:
        assert done.returncode == 0, done.stderr
    elif done.returncode == 0 and not said:
        files = json.loads((run / "config.json").read_text())["arguments"]["files"]
        assert make is links
        assert files == 5
    else:
        # It says so, and does not fall over.
        assert "Traceback" not in done.stderr
