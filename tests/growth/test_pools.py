"""The depth pool: enough candidates, no two of them the same."""

import jax
import pytest

from lagjax.growth import pools
from lagjax.model import Model
from tests.growth import checks, models
from tests.growth.test_depth import ROWS


def pool(old, new, **kwargs):
    small, large = (models.linen(layers, 0) for layers in (old, new))
    shapes = jax.eval_shape(small.init, jax.random.key(0))
    found = pools.depth(shapes, small.axes, large, **kwargs)
    layouts = [
        model.axes.layout(jax.eval_shape(model.init, jax.random.key(0))) for model in (small, large)
    ]
    words = [str(one.operator.plan(None, *layouts).words["layers"]) for one in found]
    return found, words


@pytest.mark.parametrize("old, new", [(2, 4), (3, 6), (3, 5), (4, 12), (6, 7)])
def test_candidates_differ(old, new):
    found, words = pool(old, new)
    names = [candidate.name for candidate in found]
    assert len(set(names)) == len(names)
    assert len(set(words)) == len(words)
    assert len(found) - 1 >= 12
    assert [candidate.role for candidate in found] == ["candidate"] * (len(found) - 1) + ["control"]
    assert names[0] == "zeroed-interleave"
    assert names[-1] == "reversed"
    assert pool(old, new, controls=False)[0] == found[:-1]


def test_each_third_of_the_net_is_there():
    _, words = pool(6, 8)
    for word in ("0 1 0 1 2 3 4 5", "0 1 2 3 2 3 4 5", "0 1 2 3 4 5 4 5"):
        assert word in words


def test_equal_words_keep_the_first_name():
    found, words = pool(3, 6)
    assert found[words.index("0 1 2 0 1 2")].name == "stack"
    assert "overlap" not in [candidate.name for candidate in found]


def test_one_layer_has_no_order_to_destroy():
    found, _ = pool(1, 3)
    assert not any(candidate.role == "control" for candidate in found)


@pytest.mark.parametrize("kinds", ["ab", "abb"])
def test_kinds_with_few_layers(kinds):
    """Two kinds in turn, or a first layer that is unlike the others: blocks lie within a kind."""

    def shapes(count):
        of = [kinds[i % 2] if kinds == "ab" else "abbbbb"[i] for i in range(count)]
        return checks.shapes({f"{i}/{kind}": (3,) for i, kind in enumerate(of)})

    target = Model(lambda key: shapes(6), models.linen(2, 0).loss, ROWS)
    found = pools.depth(shapes(4 if kinds == "ab" else 3), ROWS, target)
    assert len(found) >= 10
