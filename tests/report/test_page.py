"""The page holds together: nothing fetched, every candidate named, the same bytes each time, right at every stage of a run."""

import itertools
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import synthetic_runs

from lagjax import report
from lagjax.report import curves
from lagjax.report.labels import spread

RUNS = {
    "clear": {},
    "seeds": {"seeds": 3, "failed": ("aki", '<b>&"x"')},
    "audit": {"seeds": 3, "failed": ("aki",), "audit": True},
    "audit of one seed": {"audit": True},
    "tie": {"outcome": "tie"},
    "all_failed": {"outcome": "all_failed"},
    "unfinished": {"outcome": None},
    "source": {"outcome": None, "phases": ("source",)},
    "started": {"outcome": None, "phases": ()},
    "no source": {"phases": ("probe", "continue")},
    "one": {"names": ("only",), "controls": False},
    "two": {"names": ("$a$", "b_{"), "controls": False},
    "long": {"names": ("x" * 80, "ünïcode 模型", "tab\tand\nline"), "controls": False},
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects what a page says and points to; complains about tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.texts, self.tags = [], [], [], [], set()
        self.rows = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)
            self.links += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)
        else:
            assert "url(" not in data and "@import" not in data
        if "td" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """name → (page, decision) of every made-up run."""
    found = {}
    for name, kind in RUNS.items():
        root = tmp_path_factory.mktemp("runs") / "run"
        decision = synthetic_runs.make(root, **kind)
        found[name] = (report.write(root), decision)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_needs_nothing_but_itself(pages, name):
    path, _ = pages[name]
    reader = Reader(path.read_text("utf-8"))
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert all(link.startswith("#") for link in reader.links)
    assert {link[1:] for link in reader.links} <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert "http" not in re.sub(r"http-equiv", "", path.read_text("utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_names_every_candidate_and_escapes_it(pages, name):
    path, _ = pages[name]
    reader = Reader(path.read_text("utf-8"))
    texts = "".join(reader.texts)
    assert "b" not in reader.tags
    for candidate in json.loads((path.parent / "config.json").read_text())["pool"]:
        assert candidate["name"] in texts


def test_same_run_same_bytes(pages):
    path, _ = pages["clear"]
    before = path.read_bytes()
    assert report.write(path.parent) == path
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "config.json",
        "curves.jsonl",
        "decision.json",
        "report.html",
    ]


@pytest.mark.parametrize("name", ["clear", "seeds", "tie", "all_failed", "one"])
def test_table_tells_the_decision(pages, name):
    path, decision = pages[name]
    rows = Reader(path.read_text("utf-8")).rows
    for candidate, status in decision["status"].items():
        row = next(row for row in rows if row and row[0].startswith(candidate))
        _, _, rank, start, lag, _, said = row
        able = [n for n in decision["ranking"] if n not in synthetic_runs.CONTROLS]
        assert rank == (str(able.index(candidate) + 1) if candidate in able else "–")
        for shown, given in (
            (start, decision["losses_at_start"][candidate]),
            (lag, decision["losses_at_lag"][candidate]),
        ):
            assert shown == ("–" if given is None else f"{given:.4f}")
        assert said == status
        assert ("winner" in row[0]) == (candidate == decision["winner"])


def test_tied_at_the_start_share_a_rank(pages):
    path, _ = pages["clear"]
    rows = Reader(path.read_text("utf-8")).rows
    tied = [row[0] for row in rows if len(row) == 7 and row[1] == "1="]
    assert len(tied) == len(synthetic_runs.EXACT)
    chosen = [row[0] for row in rows if row and "lowest right after growing" in row[0]]
    assert len(chosen) == 1 and chosen[0].startswith(min(synthetic_runs.EXACT))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clear", "chosen out of 13 candidates after 250 training steps"),
        ("clear", "95 % interval"),
        ("clear", "Spearman's rank correlation of the two is"),
        ("seeds", "means over 3 seeds"),
        ("seeds", "loss not finite at step 40"),
        ("tie", "comes first of them in the pool"),
        ("all_failed", "Nothing was chosen: all 13 candidates failed"),
        ("unfinished", "has not chosen yet: 15 of 15 candidates"),
        ("source", "The small model"),
        ("started", "has not grown its model yet"),
    ],
)
def test_says(pages, name, words):
    path, _ = pages[name]
    assert words in "".join(Reader(path.read_text("utf-8")).texts)


def test_failed_candidate_ends_where_it_failed():
    lines = [
        {"seed": seed, "step": step, "valid_loss": value, "status": status}
        for seed, step, value, status in (
            (0, 0, 3.0, "ok"),
            (1, 0, 4.0, "ok"),
            (0, 1, 2.0, "ok"),
            (1, 1, None, "loss not finite at step 1"),
            (0, 2, 1.0, "ok"),
        )
    ]
    curve = curves.mean_over_seeds(lines)
    assert curve == ((0,), (3.5,), (0, 1), "loss not finite at step 1", 1)


def test_continuation_starts_where_its_own_seeds_stood():
    def line(seed, step, loss):
        return {"seed": seed, "step": step, "valid_loss": loss, "status": "ok"}

    probe = [line(0, 0, 5.0), line(0, 10, 3.0), line(1, 0, 5.0), line(1, 10, 4.0)]
    curve = curves.continuation(probe, [line(0, 20, 2.0)])
    assert curve.steps == (10, 20) and curve.losses == (3.0, 2.0)


def test_labels_keep_apart():
    places = spread([1.0, 1.1, 1.2, 50.0], 10.0, 0.0, 60.0)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(places))
    assert places[0] >= 0 and places[-1] == pytest.approx(50)
    assert spread([], 1.0, 0.0, 1.0) == []


def test_missing_matplotlib_says_the_remedy(tmp_path, monkeypatch):
    synthetic_runs.make(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'lagjax\[report\]'"):
        report.write(tmp_path)


def test_audit_is_told_and_only_when_it_is_whole(tmp_path):
    synthetic_runs.make(tmp_path / "whole", seeds=3, audit=True, failed=("aki",))
    page = report.write(tmp_path / "whole").read_text()
    found = Reader(page)
    steps = [row for row in found.rows if row and row[0] in ("0", "250", "5000")]
    assert len(steps) == 3
    last = steps[-1]
    # At the end a seed's losses are its own final ones: Spearman 1, and the regret is the seeds' disagreement.
    assert last[1] == "1.00" and float(last[6]) < 0.01
    assert "zero-new ended lowest" in page and "The noise floor" in page
    # One candidate is one step short: there is no audit yet.
    curves_file = tmp_path / "whole" / "curves.jsonl"
    lines = curves_file.read_text().splitlines(keepends=True)
    curves_file.write_text("".join(lines[:-1]))
    assert "The audit" not in report.write(tmp_path / "whole").read_text()
