"""A run says so where a candidate is exact by its table and does not begin as the small model."""

import json

import pytest

import lagjax
from lagjax.algebra.axes import Axes
from lagjax.growth import width
from tests import toy

KINDS = {"mlp": lagjax.Units("tanh"), "vocab": lagjax.Lookup()}


def told(model):
    return model._replace(axes=Axes(dict(model.axes.rows), dict(model.axes.kinds) | KINDS))


SMALL, DEEP, WIDE = (told(toy.model(*sizes)) for sizes in ((2,), (3,), (2, 16)))
POOL = [
    # Its head reads every channel twice, and its logits are not halved for it.
    lagjax.Candidate("twice as wide", lagjax.Grow(width=width.Tile()), WIDE),
    lagjax.Candidate("deeper", lagjax.Grow(depth="0 0* 1"), DEEP),
]


@pytest.mark.parametrize("trained", [True, False], ids=["its own loss", "another's"])
def test_a_claim_that_is_not_kept_is_told_at_once(tmp_path, trained):
    task, progress = toy.task(model=SMALL), toy.Told()
    if trained:
        source = lagjax.train(
            SMALL, toy.tx(), toy.batch, toy.VALID, 1, tmp_path, progress=toy.Told()
        )
        task = task._replace(source=source)
    lagjax.run(task, POOL, lagjax.FixedLag(1), tmp_path, compare="none", progress=progress)
    unkept = json.loads((tmp_path / "config.json").read_text())["unkept"]
    assert unkept.keys() == {"twice as wide"}
    assert [text for text in progress.notes if "exact by its table" in text] == [*unkept.values()]
    text = unkept["twice as wide"]
    assert ("the small model ended at" in text) is trained
    assert ("'deeper', which claims the same, begins at" in text) is not trained
    assert "Look first at what the large model must have, logits × 0.5 (embed)" in text
    page = (tmp_path / "report.html").read_text()
    assert "claimed, not kept" in page
    assert "does not tell all that the model does" in page
