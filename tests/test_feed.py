"""Batches are looked at on their way to a run: pure, of one shape, and arrays."""

import numpy as np
import pytest

from lagjax.feed import AGAIN, EVERY, Feed


def batch(seed, step):
    return {"x": np.full((2, 3), 100 * seed + step, np.int32)}


def test_what_comes_out_is_what_was_made():
    feed = Feed(batch)
    for step in (0, 3, 40):
        assert feed(1, step)["x"][0, 0] == 100 + step


def test_it_is_asked_twice_at_first_and_then_once_a_step():
    asked = []
    feed = Feed(lambda seed, step: asked.append(step) or batch(seed, step))
    for step in range(AGAIN):
        feed(0, step)
    assert asked == [0, 0, *range(1, AGAIN)]
    feed(0, AGAIN)
    # Now and then one from before.
    assert len(asked) == AGAIN + 3 and asked[-1] % EVERY == 0


def test_one_that_changes_its_mind_later():
    """A loader that shuffles anew when an epoch begins: the next candidate sees other data."""
    made = {"epoch": 0}

    def shuffled(seed, step):
        made["epoch"] = max(made["epoch"], step // 20)
        return {"x": batch(seed, step)["x"] + made["epoch"]}

    feed = Feed(shuffled)
    for step in range(2 * EVERY):
        feed(0, step)
    with pytest.raises(ValueError, match=r"shuffled>.*seed 0 and step 0.*another batch.*pure"):
        feed(0, 0)


BAD = {
    "nothing": (lambda seed, step: None, "None.*expected a pytree of numeric arrays"),
    "lists": (lambda seed, step: [[1, 2], [3, 4]], r"int 1 at \[0\]\[0\].*np.asarray"),
    "text": (lambda seed, step: np.array(["a"]), "numeric arrays"),
    "an empty tree": (lambda seed, step: {}, "holds no arrays"),
    "it raises": (lambda seed, step: 1 / 0, "seed 0 and step 0, raised ZeroDivisionError"),
    "it ends": (lambda seed, step: next(iter(())), "raised StopIteration"),
}


@pytest.mark.parametrize("name", BAD)
def test_no_batch(name):
    make, says = BAD[name]
    with pytest.raises(ValueError, match=says):
        Feed(make)(0, 0)


def test_a_batch_of_another_shape():
    feed = Feed(lambda seed, step: np.zeros((4 - step, 2), np.float32))
    feed(0, 0)
    with pytest.raises(ValueError, match=r"step 1, returned.*\(3, 2\).*\(4, 2\).*pad"):
        feed(0, 1)
