"""The words of every strategy: by hand for a few depths, and what holds for all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lagjax.algebra.axes import Axes
from lagjax.algebra.words import Layer, Word
from lagjax.growth import pools
from lagjax.growth.depth import (
    Block,
    Fresh,
    Interleave,
    Last,
    Lidas,
    Midas,
    Overlap,
    Reversed,
    Scaled,
    Shuffled,
    Stack,
)
from lagjax.growth.operator import Grow
from tests.growth import checks

SOLAR = " ".join(map(str, [*range(24), *range(8, 32)]))


@pytest.mark.parametrize(
    "strategy, old, new, word",
    [
        (Stack(), 3, 6, "0 1 2 0 1 2"),
        (Stack(), 3, 5, "0 1 2 0 1"),
        (Interleave(), 3, 6, "0 0 1 1 2 2"),
        (Interleave(), 3, 5, "0 0 1 1 2"),
        (Last(), 3, 6, "0 1 2 2 2 2"),
        (Last(2), 4, 6, "0 1 2 3 2 3"),
        (Block(0), 3, 6, "0 0 0 0 1 2"),
        (Block(1), 3, 6, "0 1 1 1 1 2"),
        (Block(2, 2), 6, 8, "0 1 2 3 2 3 4 5"),
        (Block(0, 2), 4, 7, "0 1 0 1 0 2 3"),
        # Block ⌈n/2⌉ from 1: of 2 the first, of 3 the second, of 4 the second.
        (Midas(4), 8, 12, "0 1 2 3 0 1 2 3 4 5 6 7"),
        (Midas(2), 6, 8, "0 1 2 3 2 3 4 5"),
        (Midas(1), 4, 5, "0 1 1 2 3"),
        (Midas(), 6, 8, "0 1 2 3 2 3 4 5"),
        (Midas(), 3, 5, "0 1 1 1 2"),
        # The last half of the block before the middle, the first half of the one after.
        (Lidas(), 4, 6, "0 1 1 2 2 3"),
        (Lidas(), 8, 12, "0 1 2 3 2 3 4 5 4 5 6 7"),
        (Lidas(), 3, 6, "0 0 1 2 1 2"),
        (Overlap(), 32, 48, SOLAR),
        (Overlap(), 4, 6, "0 1 2 1 2 3"),
        (Overlap(), 3, 6, "0 1 2 0 1 2"),
        (Overlap(), 3, 8, "0 1 0 1 2 0 1 2"),
        (Fresh(), 2, 4, "0 1 new new"),
        (Fresh("bottom"), 2, 4, "new new 0 1"),
        (Fresh("middle"), 2, 4, "0 new new 1"),
        (Fresh("between"), 2, 4, "0 new 1 new"),
        (Fresh("between", zero=True), 3, 5, "0 new* 1 new* 2"),
        (Fresh("top", zero=True), 1, 3, "0 new* new*"),
        (Scaled(Stack()), 3, 5, "0 1 2 0* 1*"),
        (Scaled(Interleave(), 0.5), 2, 4, "0 0*0.5 1 1*0.5"),
        (Scaled(Scaled(Stack(), 0.5), 0.5), 1, 2, "0 0*0.25"),
        (Scaled(Fresh("bottom"), 0.5), 1, 3, "new*0.5 new*0.5 0"),
        (Reversed(), 3, 6, "2 1 0 2 1 0"),
        (Reversed(), 3, 5, "1 0 2 1 0"),
    ],
    ids=str,
)  # fmt: skip
def test_words_by_hand(strategy, old, new, word):
    assert str(strategy.word(old, new)) == word


def test_shuffled_keeps_the_layers_and_follows_its_seed():
    words = [str(Shuffled(seed).word(3, 6)) for seed in range(5)]
    assert all(sorted(word.split()) == ["0", "0", "1", "1", "2", "2"] for word in words)
    assert len(set(words)) > 1
    assert str(Shuffled(3).word(3, 6)) == words[3]


@pytest.mark.parametrize(
    "strategy, message",
    [
        (Block(3), "source has layers 0 to 2; give a block that lies within them"),
        (Block(0, 0), "give a block"),
        (Last(4), "give a block"),
        (Midas(2), "3 layers cannot be cut into blocks of 2"),
        (Fresh("inside"), "where is 'inside'; expected one of .*'between'"),
    ],
    ids=str,
)
def test_impossible_strategies_say_why(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.word(3, 6)


depths = st.integers(1, 12).flatmap(
    lambda old: st.tuples(st.just(old), st.integers(old, 3 * old + 2))
)
named = st.sampled_from([*pools.DEPTH, *pools.CONTROLS])


@given(named, depths)
def test_words_fit(name, depth):
    old, new = depth
    word = (pools.DEPTH | pools.CONTROLS)[name].word(old, new)
    assert len(word.layers) == new
    assert all(layer.source is None or 0 <= layer.source < old for layer in word.layers)
    assert Word.parse(str(word)) == word


@given(st.sampled_from(list(pools.DEPTH)), depths)
def test_originals_stay_in_order(name, depth):
    """Every layer of the source is kept unscaled, below the ones above it; only the controls break
    this.
    """
    old, new = depth
    letters = iter(pools.DEPTH[name].word(old, new).layers)
    assert all(Layer(index) in letters for index in range(old))


scales = st.floats(-4, 4) | st.sampled_from([0.0, 1.0, 0.5, 1 / 3, 1e-7])
layers = st.builds(Layer, st.none() | st.integers(0, 40), scales)


@given(st.lists(layers, min_size=1, max_size=6))
def test_words_are_read_as_written(layers):
    word = Word(tuple(layers))
    assert Word.parse(str(word)) == word


@given(st.integers(1, 6), st.integers(0, 18))
def test_midas_takes_the_middle_block(blocks, more):
    size = 2
    word = Midas(size).word(blocks * size, blocks * size + more)
    middle = math.ceil(blocks / 2) - 1
    added = word.layers[(middle + 1) * size : (middle + 1) * size + more]
    assert {layer.source // size for layer in added} <= {middle}


# Layers of two kinds, in turn; the first layer of another kind than the rest.
IN_TURN = {0: "local", 1: "global"}
ROWS = Axes({r"(?P<layers>\d+)/\w+": ">embed+"})


def words(how, old, new, kind):
    small, large = (
        ROWS.layout(checks.shapes({f"{i}/{kind(i)}": (3,) for i in range(n)})) for n in (old, new)
    )
    return str(Grow(depth=how).plan(None, small, large).words["layers"])


@pytest.mark.parametrize(
    "how, word",
    [
        (Stack(), "0 1 2 3 0 1 2 3"),
        (Interleave(), "0 1 0 1 2 3 2 3"),
        (Scaled(Last()), "0 1 2 3 2* 3* 2* 3*"),
        ("2 3 0 1 0 1 2* new", "2 3 0 1 0 1 2* new"),
    ],
    ids=str,
)
def test_layers_are_copied_among_their_kind(how, word):
    assert words(how, 4, 8, lambda layer: IN_TURN[layer % 2]) == word


def test_a_kind_that_does_not_grow_stays():
    def kind(layer):
        return "experts" if layer else "dense"

    for name, how in pools.DEPTH.items():
        assert words(how, 3, 5, kind).split()[0] == "0", name
    assert words(Block(1), 3, 5, kind) == "0 1 2 2 2"
    with pytest.raises(ValueError, match="layer of another kind .layer 3."):
        words("0 1 2 0 1", 3, 5, kind)


def test_no_kind_is_dropped():
    with pytest.raises(ValueError, match="0 layers with the parameters .*a, .*b, the source 1"):
        one, other = (
            ROWS.layout(checks.shapes(dict.fromkeys(paths, (3,))))
            for paths in (["0/a", "1/a", "1/b", "2/b"], ["0/a", "1/b", "2/b"])
        )
        Grow(depth=Stack()).plan(None, one, other)
