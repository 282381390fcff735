"""UL2's denoisers: T5's masks, texts that come back, and batches as the two models take them."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.data import denoisers
from experiments.data.denoisers import UL2, Denoiser, Joined, Pairs

NAMES = ["[PAD]", "[EOS]", "[NLU]", "[NLG]", "[S2S]", *(f"<extra_{n}>" for n in range(128))]
# Sentinels in no order, so that none is found by counting.
IDS = dict(zip(NAMES, [0, 1, 2, 3, 4, *np.random.default_rng(0).permutation(128) + 5]))
SPECIAL = denoisers.special(IDS)
SHAPES = (Pairs(40, 48), Joined(64))
TEXT = np.random.default_rng(1).integers(200, 300, 5000).astype(np.int32)


def windows(seed: int, step: int, count: int, length: int) -> np.ndarray:
    """Random slices of a text: int32 [count, length]."""
    starts = np.random.default_rng([seed, step]).integers(len(TEXT) - length, size=count)
    return TEXT[starts[:, None] + np.arange(length)]


def runs(mask: np.ndarray) -> int:
    """How many stretches are True."""
    return int((mask & ~np.concatenate([[False], mask[:-1]])).sum())


CASES = st.sampled_from([*UL2, *denoisers.scaled(64), *denoisers.scaled(128, roll=True)])


@settings(max_examples=60)
@given(CASES, st.integers(2, 260), st.integers(0, 2**32))
def test_a_mask_has_the_tokens_and_spans_that_it_should(
    denoiser: Denoiser, length: int, seed: int
) -> None:
    mask = denoisers.noise_mask(denoiser, length, seed)
    assert mask.shape == (length,)
    assert not mask[0]
    if denoiser.span is None:
        prefix = length - mask.sum()
        assert max(1, round((1 - 2 * denoiser.rate) * (length - 1))) <= prefix <= length - 1
        assert mask[prefix:].all()
        return
    noise = min(max(round(length * denoiser.rate), 1), length - 1)
    assert mask.sum() == noise
    assert runs(mask) == max(1, min(round(noise / denoiser.span), length - noise))
    assert mask[-1] or denoiser.roll


@settings(max_examples=60)
@given(CASES, st.integers(2, 260), st.integers(0, 2**32), st.integers(0, 9))
def test_inputs_and_targets_together_are_the_text(
    denoiser: Denoiser, length: int, seed: int, step: int
) -> None:
    text = windows(seed, step, 1, length)[0]
    inputs, targets = denoisers.corrupted(denoiser, text, (seed, step), SPECIAL)
    np.testing.assert_array_equal(denoisers.restored(inputs, targets, SPECIAL), text)
    assert inputs[0] == IDS[denoiser.mode]
    assert inputs[-1] == targets[-1] == IDS["[EOS]"]
    promised = denoisers.lengths(denoiser, length)
    assert len(inputs) + len(targets) == promised.both
    assert len(inputs) <= promised.inputs
    assert len(targets) <= promised.targets
    found = [[x for x in part if x in set(SPECIAL.sentinels)] for part in (inputs, targets)]
    assert found[0] == found[1] == SPECIAL.sentinels[: promised.spans].tolist()
    again = denoisers.corrupted(denoiser, text, (seed, step), SPECIAL)
    np.testing.assert_array_equal(again[0], inputs)
    np.testing.assert_array_equal(again[1], targets)


def test_the_published_lengths() -> None:
    """Text, targets and spans that T5's helper finds at 512, with a place more for the mode."""
    expected = {
        "R-3-15": (568, 114, 28),
        "R-8-15": (588, 100, 11),
        "X-3-50": (766, 512, 128),
        "X-8-50": (908, 512, 57),
        "X-64-15": (600, 92, 1),
        "X-64-50": (1006, 512, 8),
    }
    for each in UL2[:-1]:
        length = denoisers.text_length(each, Pairs(513, 512))
        found = denoisers.lengths(each, length)
        assert (length, found.targets, found.spans) == expected[each.name]
        assert found.inputs == 513
    # With the mode among the 512 a prefix of all but one token leaves a target and its end.
    assert denoisers.text_length(UL2[-1], Pairs(512, 512)) == 511
    assert denoisers.sentinels_needed(UL2, Pairs(513, 512)) == 128


def many(denoiser: Denoiser, length: int, count: int) -> np.ndarray:
    """Masks drawn together: bool [count, length]."""
    return denoisers._masks([denoiser] * count, np.full(count, length), 3)


def test_all_ways_to_cut_are_equally_likely() -> None:
    masks = many(Denoiser("", "[NLU]", 0.5, 2.0), 8, 3600)
    # Four tokens are cut in two in 3 ways, on either side.
    found, times = np.unique(masks, axis=0, return_counts=True)
    assert len(found) == 9
    assert np.abs(times - 400).max() < 5 * np.sqrt(400)


def test_one_span_is_the_end_unless_it_rolls() -> None:
    plain, rolled = (many(Denoiser("", "[NLG]", 0.25, 64.0, roll), 8, 3000) for roll in (0, 1))
    assert (plain[:, 6:].all(1) & ~plain[:, :6].any(1)).all()
    starts = np.bincount(rolled.argmax(1), minlength=8)
    assert not starts[0]
    assert not starts[7]
    assert np.abs(starts[1:7] - 500).max() < 5 * np.sqrt(500)


def test_prefixes_are_at_least_half_and_three_quarters_in_the_mean() -> None:
    prefixes = 101 - many(UL2[-1], 101, 4000).sum(1)
    assert (prefixes.min(), prefixes.max()) == (50, 100)
    assert prefixes.mean() == pytest.approx(75, abs=5 * 14.7 / np.sqrt(4000))


def test_short_windows_keep_the_number_of_long_spans() -> None:
    assert denoisers.scaled(512) == denoisers.scaled(2048) == UL2
    for window in (64, 128, 256):
        scaled = denoisers.scaled(window)
        assert len({(each.rate, each.span, each.mode) for each in scaled}) == len(UL2)
        for each, published in zip(scaled[4:6], UL2[4:6]):
            spans = [
                denoisers.lengths(one, denoisers.text_length(one, Pairs(size, size))).spans
                for one, size in ((each, window), (published, 512))
            ]
            # Ends and modes take a larger share of a short window.
            assert spans in ([1, 1], [8, 8], [7, 8])
    assert [each.span for each in denoisers.scaled(64)][:3] == [3, 4.11, 3]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_holds_whole_texts(shape: Any) -> None:
    batch = denoisers.batches(windows, IDS, 32, shape)
    made = batch(1, 5)
    mixture = denoisers.scaled(shape.window)
    size = {each: denoisers.text_length(each, shape) for each in mixture}
    texts = windows(1, 5, 32, max(size.values()))
    for row in range(32):
        each = {name: leaf[row] for name, leaf in made.items()}
        if isinstance(shape, Pairs):
            inputs, targets = each["inputs"], each["targets"]
            assert (each["weights"] == (targets != 0)).all()
        else:
            inputs = each["tokens"][: each["prefix"]]
            counted = each["tokens"][each["weights"] > 0]
            targets = each["tokens"][each["prefix"] :]
            assert (targets[: len(counted)] == counted).all()
            assert not targets[len(counted) :].any()
        text = denoisers.restored(inputs, targets, SPECIAL)
        assert len(text) in [size[one] for one in mixture if IDS[one.mode] == inputs[0]]
        np.testing.assert_array_equal(text, texts[row, : len(text)])
    for name, leaf in batch(1, 5).items():
        np.testing.assert_array_equal(leaf, made[name])
    other = denoisers.batches(windows, IDS, 32, shape)(1, 6)
    assert {name: leaf.shape for name, leaf in other.items()} == {
        name: leaf.shape for name, leaf in made.items()
    }
    first = next(iter(made))
    assert (other[first] != made[first]).any()
    assert (batch(2, 5)[first] != made[first]).any()


def test_the_mixture_has_its_shares() -> None:
    modes = [IDS[mode] for mode in ("[NLU]", "[NLG]", "[S2S]")]
    for shares, expected in ((None, (2, 4, 1)), ((3.5, 0, 0, 0, 3.5, 0, 0), (3.5, 3.5, 0))):
        batch = denoisers.batches(windows, IDS, 2100, SHAPES[0], shares=shares)(0, 0)
        found = (batch["inputs"][:, :1] == modes).sum(0)
        np.testing.assert_allclose(found, 300 * np.array(expected), atol=5 * np.sqrt(525))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shards_are_of_one_denoiser_each_in_turn(shape: Any) -> None:
    valid = denoisers.shards(windows, IDS, 4, shape, each=2)
    assert valid.names == 2 * tuple(each.name for each in UL2)
    again = denoisers.shards(windows, IDS, 4, shape, each=2)
    modes = {each.name: IDS[each.mode] for each in UL2}
    for name, count, shard, same in zip(*valid[1:], valid.batches, again.batches):
        front = shard.get("inputs", shard.get("tokens"))[:, 0]
        assert (front == modes[name]).all()
        assert shard["weights"].sum() == count
        for leaf, other in zip(shard.values(), same.values()):
            np.testing.assert_array_equal(leaf, other)
    assert len({str(shard) for shard in valid.batches}) == 14


def test_losses_by_denoiser() -> None:
    names, means, counts = ("a", "b", "a", "b", "c"), [1.0, 2.0, 4.0, None], [1, 5, 2, 7, 3]
    # The third shard counts twice the first; the last is not there, as where a probe saw four.
    assert denoisers.by_denoiser(names, means, counts) == {"a": 3.0, "b": 2.0}


def test_what_does_not_fit_is_named_with_its_remedy() -> None:
    few = dict(itertools.islice(IDS.items(), 9))
    with pytest.raises(ValueError, match=r"needs 9 sentinels, .* has 4; .*<extra_8>"):
        denoisers.batches(windows, few, 8, SHAPES[0])
    with pytest.raises(ValueError, match=r"needs 13 sentinels"):
        denoisers.corrupted(UL2[2], TEXT[:78], 0, denoisers.special(few))
    with pytest.raises(ValueError, match=r"no \[NLG\]; train"):
        denoisers.special({name: number for name, number in IDS.items() if name != "[NLG]"})
    with pytest.raises(ValueError, match="has the id 7"):
        denoisers.special(IDS | {"[PAD]": 7})
    with pytest.raises(ValueError, match="127 sentinels and no <extra_5>"):
        denoisers.special({name: n for name, n in IDS.items() if name != "<extra_5>"})
    with pytest.raises(ValueError, match="no room for two tokens"):
        denoisers.text_length(UL2[0], Pairs(3, 8))
    with pytest.raises(ValueError, match=r"expected 7 numbers"):
        denoisers.batches(windows, IDS, 8, SHAPES[0], shares=(1, 2))
    with pytest.raises(ValueError, match=r"has the shape \(7, \d+\); expected \(8, "):
        denoisers.batches(lambda *key: windows(*key)[1:], IDS, 8, SHAPES[0])(0, 0)
    with pytest.raises(ValueError, match=r"up to 0.5 with a prefix"):
        Denoiser("", "[S2S]", 0.6, None)
