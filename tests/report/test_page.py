"""The page holds together: nothing fetched, all named, the same bytes each time, at every stage."""

import itertools
import json
import math
import re
import sys
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic_runs

from lagjax import report
from lagjax.jobs import Trial
from lagjax.report import bounce, facts, sentences, watched
from lagjax.report.charts import spread

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
    "racing": {
        "seeds": 2,
        "failed": ("aki",),
        "racing": True,
        "baseline": True,
        "metrics": True,
        "shift": 4.0,
        "unit": "bits per <pixel>",
    },
    "negative audit": {"seeds": 2, "audit": True, "shift": 9.0, "unit": "bits per <pixel>"},
    "paid": {"against": "paid"},
    "lost": {"against": "lost", "seeds": 2},
    "level": {"against": "level", "shift": 9.0, "unit": "bits per <pixel>"},
    "baseline failed": {"against": "failed"},
    "baselines begun": {"against": "begun"},
    "nothing to compare": {"against": "paid", "outcome": "all_failed"},
    "targets": {"targets": True, "against": "paid", "seeds": 2, "failed": ("aki",)},
    "targets only": {"targets": True, "racing": True},
    "targets unfinished": {"targets": True, "outcome": None},
    "rare": {"rare": True, "seeds": 2, "bounce": 0.01},
    "audit of averages": {"audit": True, "seeds": 2, "bounce": 0.01},
    "two": {"names": ("$a$", "b_{"), "controls": False},
    "long": {"names": ("x" * 80, "ünïcode 模型", "tab\tand\nline"), "controls": False},
}
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects what a page says and points to; complains about tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.texts, self.tags = [], [], [], [], set()
        self.tables = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
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
        if {"td", "th"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    def table(self, *headings):
        """name → its cells by heading, of the table that has these headings."""
        head, *rows = next(each for each in self.tables if {*headings} <= {*each[0]})
        return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """name → (page, decision) of a made-up run, made when it is asked for."""

    class Pages(dict):
        def __missing__(self, name):
            root = tmp_path_factory.mktemp("runs") / "run"
            decision = synthetic_runs.make(root, **RUNS[name])
            self[name] = (report.write(root), decision)
            return self[name]

    return Pages()


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


def test_pictures_take_the_colours_of_the_page(pages):
    page = pages["clear"][0].read_text("utf-8")
    assert page.count('<svg class="chart"') == 4 and "#0102" not in page
    used = {*re.findall(r"var\(--(\w+)\)", page[page.index("<svg") :])}
    known = re.findall(r"--(\w+):", page[: page.index("<svg")])
    assert {"winner", "runner", "start", "ink", "muted"} <= used
    # One value for light and one for dark.
    assert all(known.count(name) == 2 for name in used)


def test_names_are_no_formulas(pages):
    page = pages["two"][0].read_text("utf-8")
    assert {"$a$", "b_{"} <= {*drawn(page, "Rank of each")}


def test_ledger_tells_the_decisions_costs(pages):
    path, decision = pages["clear"]
    rows = Reader(path.read_text("utf-8")).table("Purpose", "FLOPs")
    assert decision["ledger"]["evaluation_flops"] == 3.1e13
    assert rows["Evaluations"]["FLOPs"] == "3.10 × 10¹³"
    assert rows["Probe of the winner, kept"]["Training tokens"] == "2.05 × 10⁶"
    # Its counts go on from the probe.
    assert rows["Winner after the lag"]["FLOPs"] == "1.14 × 10¹⁶"
    assert rows["Winner after the lag"]["In full runs"] == "0.950"


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
        "rounds.jsonl",
    ]


@pytest.mark.parametrize("name", ["clear", "seeds", "tie", "all_failed", "one", "racing"])
def test_table_tells_the_decision(pages, name):
    path, decision = pages[name]
    page = path.read_text("utf-8")
    rows = Reader(page).table("Candidate", "Status")
    assert len(rows) == len(decision["status"])
    apart = (*synthetic_runs.CONTROLS, synthetic_runs.BASELINE)
    able = [name for name in decision["ranking"] if name not in apart]
    # A column that would be empty is left out.
    assert ("Loss at the lag" in next(iter(rows.values()))) == bool(able)
    for candidate, status in decision["status"].items():
        title, row = next(item for item in rows.items() if item[0].startswith(candidate))
        rank = str(able.index(candidate) + 1) if candidate in able else "–"
        assert row.get("Rank at the lag", "–") == rank
        assert row["Loss right after growing"] == minus(decision["losses_at_start"][candidate])
        at_lag = row.get("Loss at the lag", "–")
        if status == synthetic_runs.STOPPED:
            assert at_lag.endswith(" at step 60")
        else:
            assert at_lag == minus(decision["losses_at_lag"][candidate])
        assert row["Status"] == status
        # What was stopped has not failed.
        name_is = re.escape(f'"><td><span class="name">{escape(candidate)}<')
        looks = re.search(rf'<tr class="(\w*){name_is}', page)
        assert looks and (looks[1] == "failed") == (status == synthetic_runs.FAILED)
        assert ("winner" in title) == (candidate == decision["winner"])


def test_final_losses_are_those_at_the_horizon(pages):
    path, decision = pages["clear"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "Status")
    lines = [json.loads(x) for x in (path.parent / "curves.jsonl").read_text().splitlines()]
    last = {x["candidate"]: x["valid_loss"] for x in lines if x["step"] == synthetic_runs.HORIZON}
    assert {*last} == {decision["winner"], "fpi"}
    for title, row in rows.items():
        name = next((name for name in last if title.startswith(name)), None)
        assert row["Final loss"] == ("–" if name is None else minus(last[name]))


def minus(value):
    """As the page writes a loss."""
    return "–" if value is None else f"{value:.4f}".replace("-", "−")


def test_tied_at_the_start_share_a_rank(pages):
    path, _ = pages["clear"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "Status")
    tied = [name for name, row in rows.items() if row["Rank right after growing"] == "1="]
    assert len(tied) == len(synthetic_runs.EXACT)
    assert {row["Rank right after growing"] for row in rows.values()} >= {"4", "5", "13", "–"}
    chosen = [name for name in rows if "lowest right after growing" in name]
    assert len(chosen) == 1 and chosen[0].startswith(min(synthetic_runs.EXACT))


def test_word_and_exactness_where_given(pages):
    path, _ = pages["clear"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "Status")
    exact = {"fpi": "no", "half-new": "yes", "stack": "–"}
    for given, told in exact.items():
        name, row = next(item for item in rows.items() if item[0].startswith(given))
        assert row["Exact"] == told
        assert ("word: 0 0* 1 1*" in name) == (given == "half-new")


def test_roles_have_no_rank_and_are_named(pages):
    path, _ = pages["racing"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "Status")
    for name, role in (("from scratch", "control"), (synthetic_runs.BASELINE, "baseline")):
        title, row = next(item for item in rows.items() if item[0].startswith(name))
        assert title.startswith(f"{name} {role}") and row["Rank right after growing"] == "–"


def test_rounds_only_where_there_are_several(pages):
    path, decision = pages["racing"]
    rows = Reader(path.read_text("utf-8")).table("Round", "Answer")
    assert [row["Answer"] for row in rows.values()] == [
        "Probe",
        "Add",
        "Probe",
        "Probe",
        "Decision",
    ]
    assert [row["To step"] for row in rows.values()] == ["60", "–", "60", "250", "–"]
    assert rows["0"]["Candidates"] == "16 of 17"
    assert rows["1"]["Candidates"] == synthetic_runs.ADDED
    assert {*re.split(", | and ", rows["3"]["Candidates"])} == {*decision["ranking"]}
    assert rows["4"]["Candidates"] == decision["winner"]
    assert "The rounds" not in pages["clear"][0].read_text("utf-8")


def test_metrics_are_those_of_the_last_step(pages):
    path, _ = pages["racing"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "At step")
    lines = [json.loads(x) for x in (path.parent / "curves.jsonl").read_text().splitlines()]
    for name, at in ((synthetic_runs.ADDED, 250), ("stack", 60)):
        own = [x["metrics"] for x in lines if (x["candidate"], x["step"]) == (name, at)]
        assert len(own) == 2 and rows[name]["At step"] == str(at)
        mean = sum(each["valid_accuracy"] for each in own) / 2
        assert rows[name]["valid_accuracy"] == f"{mean:.4f}" and rows[name]["lr"] == "0.0003"
    assert rows["aki"]["valid_accuracy"] == "–"
    assert "The metrics" not in pages["clear"][0].read_text("utf-8")


@pytest.mark.parametrize("name", ["racing", "negative audit"])
def test_the_unit_is_the_runs(pages, name):
    page = pages[name][0].read_text("utf-8")
    assert "nats" not in page
    assert page.count("bits per &lt;pixel&gt;") > 6


def drawn(page, label):
    """The texts of a picture."""
    picture = page[page.index(f'aria-label="{label}') :]
    return Reader(picture[: picture.index("</svg>")]).texts


@pytest.mark.parametrize("name", ["racing", "clear"])
def test_ranks_are_told_of_those_in_the_race(pages, name):
    told = drawn(pages[name][0].read_text("utf-8"), "Rank of each")
    # The race goes on when some have left it.
    assert "250" in told
    # Names stand in the column or, of those that left the race, at the end of their lines.
    assert all(each in told for each in synthetic_runs.NAMES if len(each) < 16)
    assert not {*synthetic_runs.CONTROLS, synthetic_runs.BASELINE} & {*told}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clear", "chosen out of 13 candidates after 250 training steps"),
        ("clear", "95 % interval"),
        ("clear", "fpi (one of 3 that start equal, the first by the alphabet); at the horizon its"),
        ("clear", "Spearman's rank correlation of the two is"),
        ("seeds", "means over 3 seeds"),
        ("paid", "Growing paid: after 1.20 × 10¹⁶ FLOPs each, zero-new ended at 2.1865 nats"),
        ("paid", "0.4135 below not growing (95 % interval 0.4135 to 0.4135) and 0.6929 below"),
        (
            "paid",
            "From 1.22 × 10¹⁴ FLOPs on, 1 % of the full run, zero-new stays below not growing",
        ),
        ("paid", "zero-new and from scratch do not cross: zero-new is lower throughout"),
        ("paid", "The small model's own training, 1.20 × 10¹⁵ FLOPs, came before and is not"),
        ("lost", "Growing did not pay: after"),
        ("lost", "0.2000 above not growing (95 % interval 0.2000 to 0.2000)"),
        ("lost", "FLOPs on, 12 % of the full run, not growing stays below zero-new"),
        ("level", "Whether growing paid is within the noise"),
        ("level", "zero-new and not growing do not cross; at the end the two cannot be told apart"),
        ("baseline failed", "As far as it is compared, growing paid"),
        ("baseline failed", "not growing is not compared: loss not finite at step 3000"),
        (
            "baselines begun",
            "cannot be told yet: no baseline has ended. not growing has come to 4 %",
        ),
        ("racing", "small model goes on has come to 1.2 % of its training; after"),
        ("targets", "after 250 steps (the lag) and after 6.00 × 10¹⁴ FLOPs; losses are"),
        ("targets only", "At equal FLOPs"),
        ("racing", "chosen out of 14 candidates after up to 250 training steps"),
        ("racing", "by candidate from 60 to 250"),
        ("racing", "Controls and baselines are left out"),
        ("negative audit", "No transition was found: 0 curves of 21 positive points"),
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


def test_the_candidates_table_without_what_is_not_compared(pages):
    path, _ = pages["targets"]
    rows = Reader(path.read_text("utf-8")).table("Candidate", "Status")
    lines = [json.loads(x) for x in (path.parent / "curves.jsonl").read_text().splitlines()]

    def mean(name, step):
        own = [x for x in lines if (x["candidate"], x["step"]) == (name, step)]
        return sum(x["valid_loss"] for x in own) / len(own)

    # A step of every other one costs twice as much: it is half as far, between two evaluations.
    starts = ("half-new", "stack", "aki", "not growing", "from scratch")
    found = {n: next(row for t, row in rows.items() if t.startswith(n)) for n in starts}
    half = found["half-new"]
    share = math.log(125 / 100) / math.log(150 / 100)
    between = mean("half-new", 100) * (1 - share) + mean("half-new", 150) * share
    assert half["Loss at equal FLOPs"] == minus(between)
    assert found["stack"]["Loss at equal FLOPs"] == minus(mean("stack", 250))
    ranks = {row["Rank at equal FLOPs"] for row in rows.values()}
    assert sorted(map(int, ranks - {"–"})) == list(range(1, 13))
    assert {found[name]["Rank at equal FLOPs"] for name in starts[2:]} == {"–"}
    assert "Rank at equal steps" not in half
    assert found["not growing"]["Final loss"] == "2.6000"
    for each in ("clear", "paid"):
        assert "equal FLOPs" not in pages[each][0].read_text("utf-8")


def test_what_growing_is_compared_with(pages):
    page = pages["paid"][0].read_text("utf-8")
    rows = Reader(page).table("Baseline", "Steps")
    assert rows["not growing"] == {
        "Baseline": "not growing",
        "Steps": "10\u2009000",
        "FLOPs": "1.20 × 10¹⁶",
        "Loss at its end": "2.6000",
        "Above the winner's": "0.4135",
        "95 % interval": "0.4135 to 0.4135",
        "Crosses at FLOPs": "1.22 × 10¹⁴",
    }
    told = drawn(page, "Validation loss against FLOPs")
    assert {"not growing", "from scratch", "zero-new", "10¹⁴"} <= {*told}
    # Their FLOPs stand apart, and their length does not stretch the steps of others.
    rows = Reader(page).table("Purpose", "FLOPs")
    assert rows["Baselines, apart"]["FLOPs"] == "2.40 × 10¹⁶"
    assert "Others after the lag, for comparison" in rows
    steps = drawn(page, "Validation loss against step")
    assert "5 000" in steps and "10 000" not in steps
    failed = Reader(pages["baseline failed"][0].read_text("utf-8")).table("Baseline", "Steps")
    assert failed["not growing"]["Loss at its end"] == "failed"
    for each in ("clear", "nothing to compare", "started", "targets only"):
        assert "Does growing pay?" not in pages[each][0].read_text("utf-8")


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
    curve = facts.mean_over_seeds(lines)
    assert curve == ({0: 3.5}, "loss not finite at step 1")


def test_continuation_starts_where_its_own_seeds_stood():
    def line(seed, step, loss):
        return {"seed": seed, "step": step, "valid_loss": loss, "status": "ok"}

    probe = [line(0, 0, 5.0), line(0, 10, 3.0), line(1, 0, 5.0), line(1, 10, 4.0)]
    curve = facts.continuation(probe, [line(0, 20, 2.0)])
    assert curve.losses == {10: 3.0, 20: 2.0}


def test_equal_within_the_tolerance_also_below_zero():
    losses = {"b": -3.0, "a": -3.0 - 1e-6, "c": -2.9, "failed": None}
    assert facts.ranks(losses) == {"b": 1, "a": 1, "c": 3}


def test_a_race_without_its_decision_or_its_rounds(tmp_path):
    synthetic_runs.make(tmp_path, racing=True)
    page = report.write(tmp_path).read_text()
    assert f"Grow(depth=&#x27;{synthetic_runs.ADDED}&#x27;)" in page
    # One that is left alone at the end has raced with the others.
    alone = json.loads((tmp_path / "decision.json").read_text())
    alone |= {"ranking": [alone["winner"]], "runner_up": None, "margin": None}
    (tmp_path / "decision.json").write_text(json.dumps(alone))
    page = report.write(tmp_path).read_text()
    assert "The ranking over time" in page and "lies above the winner" in page
    rounds, file = (tmp_path / "rounds.jsonl").read_text(), tmp_path / "decision.json"
    (tmp_path / "rounds.jsonl").unlink()
    decision = json.loads(file.read_text())
    assert "after 250 training steps" in report.write(tmp_path).read_text()
    decision["lags"]["stack"] = 100
    file.write_text(json.dumps(decision))
    assert "after up to 250 training steps" in report.write(tmp_path).read_text()
    (tmp_path / "rounds.jsonl").write_text(rounds)
    (tmp_path / "decision.json").unlink()
    # Those that were left behind at step 60 hold nobody up.
    assert "all of those still alive to step 250" in report.write(tmp_path).read_text()


def test_other_phases_change_nothing(tmp_path):
    synthetic_runs.make(tmp_path, audit=True)
    page = report.write(tmp_path).read_bytes()
    with (tmp_path / "curves.jsonl").open("a") as file:
        line = {"phase": "anneal", "candidate": "stack", "seed": 0, "step": 5000, "valid_loss": 0.0}
        file.write(json.dumps({**line, "status": "ok", "metrics": {"x": 1.0}}) + "\n")
    assert report.write(tmp_path).read_bytes() == page


def test_decision_without_curves_has_a_page(tmp_path):
    synthetic_runs.make(tmp_path)
    (tmp_path / "curves.jsonl").unlink()
    page = report.write(tmp_path).read_text()
    assert "chosen out of 13 candidates" in page and "Loss while training" not in page


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
    steps = found.table("Step", "Spearman")
    assert {"0", "250", "5000"} <= {*steps}
    last = steps["5000"]
    # At the end a seed's losses are its own final ones: the regret is the seeds' disagreement.
    assert last["Spearman"] == "1.00" and float(last["Regret"]) < 0.01
    assert {"random choice", "noise floor"} <= {*drawn(page, "Regret of the choice")}
    assert "-0.5" in "".join(drawn(page, "Rank correlation")).replace("−", "-")
    assert "zero-new ended lowest" in page and "The noise floor" in page
    # One candidate is one step short: there is no audit yet.
    curves_file = tmp_path / "whole" / "curves.jsonl"
    lines = curves_file.read_text().splitlines(keepends=True)
    curves_file.write_text("".join(lines[:-1]))
    assert "The audit" not in report.write(tmp_path / "whole").read_text()


def test_training_losses_are_drawn_where_validation_is_rare(pages):
    path, _ = pages["rare"]
    text = "".join(Reader(path.read_text("utf-8")).texts)
    assert "Training loss of each candidate while it trains." in text
    assert "training loss, nats per token" in text and "by training loss." in text
    dense = "".join(Reader(pages["seeds"][0].read_text("utf-8")).texts)
    assert "Validation loss of each candidate" in dense and "training loss" not in dense


def test_watched_curves_are_means_over_windows():
    """Of a quarter of the steps and 50 at most, over the seeds that came so far."""
    steps = np.arange(1.0, 401.0)
    losses = {Trial("a", 0): steps, Trial("a", 1): steps + 2, Trial("b", 0): steps[:100]}
    losses |= {Trial("c", 0): np.where(steps < 30, steps, np.nan)}
    found = watched.curves(losses, {"a": (0, 400), "b": (0, 200), "c": (0, 400), "d": (0, 9)})
    assert [*found] == ["a", "c"]
    curve = found["a"].losses
    # Steps 351 to 400, and the two seeds 2 apart; step 4 alone.
    assert curve[400] == pytest.approx(375.5 + 1) and curve[4] == pytest.approx(4 + 1)
    assert max(found["c"].losses) < 30
    assert watched.steps(0, 16) == [4, 5, 6, 7, 8, 10, 11, 13, 16]
    assert min(watched.curves(losses, {"a": (200, 400)})["a"].losses) == 200


def test_bounce_and_crossing_are_told_apart(pages):
    path, decision = pages["rare"]
    reader = Reader(path.read_text("utf-8"))
    text = "".join(reader.texts)
    # The n-th of the pool bounces by n hundredths.
    assert "At step 250 the average 'ema' is 0.0100 to 0.1300 nats per token below" in text
    assert "differ less in their bounce" in text and "is crossing" not in text
    row = reader.table("Loss of the weights", "Bounce")["interleave"]
    lag = decision["losses_at_lag"]["interleave"]
    assert row["Loss of the weights"] == f"{lag:.4f}" and row["Bounce"] == "0.0200"
    assert row["of their average"] == f"{lag - 0.02:.4f}"
    audit = "".join(Reader(pages["audit of averages"][0].read_text("utf-8")).texts)
    assert re.search(r"order at the end agree to 0\.\d\d: what is missing to 1 is crossing", audit)
    assert "Bounce" not in "".join(Reader(pages["clear"][0].read_text("utf-8")).texts)


def test_the_page_says_which_weights_were_compared(pages):
    text = "".join(Reader(pages["rare"][0].read_text("utf-8")).texts)
    assert "Losses at the lag are those of the weights 'ema', the final ones not." in text
    assert "the losses of the weights 'ema'" in text
    assert "weights '" not in "".join(Reader(pages["clear"][0].read_text("utf-8")).texts)


def test_an_average_that_lags_behind_says_so():
    raw = {"a": 1.0, "b": 1.2}
    found = bounce.Bounce("ema", 8, raw, {"a": 1.1, "b": 1.25}, {})
    more = bounce.told(found._replace(averaged={"a": 0.9, "b": 0.91}), "nats")
    assert "is 0.1000 to 0.2900 nats below the weights." in more
    assert "differ more in their bounce" in more
    text = bounce.told(found, "nats")
    assert "is 0.0500 to 0.1000 nats above the weights, which still fall faster" in text
    assert "differ less in their bounce" in text


def test_fewer_shards_than_the_small_model_had_are_told():
    """An exact candidate begins where the small model ended on the same shards."""

    def line(phase, step, shards):
        return {"phase": phase, "step": step, "valid_loss_shards": shards}

    ended = line("source", 9, [1.0, 2.0, 4.0, 5.0])
    few = [ended, line("probe", 0, [1.0, 2.0]), line("probe", 5, [0.5, 1.5, 3.0, 4.0])]
    told = SimpleNamespace(lines=few, config={"shard_tokens": [3.0, 1.0, 1.0, 1.0]})
    assert sentences.on_shards(told).endswith(
        "first 2 of 4 validation shards, on which the small model ended at 1.2500."
    )
    alike = SimpleNamespace(lines=[ended, line("probe", 0, [1.0, 2.0, 4.0, 5.0])], config={})
    assert sentences.on_shards(alike) == ""
    assert sentences.on_shards(SimpleNamespace(lines=few[1:], config={})) == ""
