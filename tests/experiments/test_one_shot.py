"""One shot: a small search of BERT end to end, and what a large one would take."""

import dataclasses
import pathlib

import jax
import pytest

from experiments import one_shot, settings
from experiments.one_shot import Config
from experiments.rows import read

SIZE = settings.Size(width=16, heads=2, window=32, batch=2, shards=8, vocab=280)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = one_shot.TINY._replace(size=SIZE, layers=(1, 2), source_steps=4, horizon=16)
    scales = {name: {**sizes, "tiny": scale} for name, sizes in one_shot.SCALES.items()}
    monkeypatch.setattr(one_shot, "SCALES", scales)


def test_a_small_bert_goes_through(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        words = " ".join(f"word{number * at % 17} and" for at in range(60))
        (texts / f"{number}.txt").write_text(f"{number}: {words}\n")
    config = Config(
        "bert", data=str(texts), workdir=tmp_path / "run", candidates=2, record=True,
        results=tmp_path,
    )  # fmt: skip
    one_shot.main(config)
    (row,) = read(tmp_path / "one_shot.jsonl")
    assert row["lag"] == 1 and row["weights"] == "average" and row["winner"]
    assert row["downstream"].keys() == {"tokens", "pairs"}
    assert all(0 <= share <= 1 for share in row["downstream"].values())
    assert row["winner"] in capsys.readouterr().out
    (section,) = one_shot.sections([row])
    assert f"| bert, tiny | {row['winner']} ({row['outcome']}) | 1 |" in section


@pytest.mark.parametrize("model", ["gpt", "ul2"])
def test_a_dry_run_trains_nothing(
    model: one_shot.Kind, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(model, dry_run=True, device_flops=1e9)
    scale = one_shot.SCALES[model]["tiny"]
    told = one_shot.foretold(config, scale)
    names, values = (list(column.cells) for column in told.columns)
    found = dict(zip(names, values))
    assert found["steps of the horizon"] == "16" and found["steps of the lag"] == "1"
    assert float(found["parameters, large"].split()[0]) >= 0
    one = float(found["hours of one full run"].replace(",", ""))
    many = float(found["hours of the exhaustive search"].replace(",", ""))
    assert many == pytest.approx(int(found["candidates"]) * one, abs=0.1)
    one_shot.main(config)
    assert not [*tmp_path.iterdir()]


def test_base_is_as_published() -> None:
    bert, t5 = (one_shot.SCALES[name]["base"] for name in ("bert", "ul2"))
    assert (bert.size.width, bert.size.heads, bert.size.vocab, bert.layers[1]) == (
        768, 12, 30_522, 12,
    )  # fmt: skip
    assert bert.size.learning_rate / 3 == pytest.approx(1e-4)
    small = dataclasses.replace(t5.size, batch=1)
    large = settings.MODELS["ul2"](small, 1, settings.BLANK).large(t5.layers[1], False)
    shapes = jax.tree.leaves(jax.eval_shape(large.init, jax.random.key(0)))
    # T5.1.1 base, as counted in the tests of its model.
    assert sum(x.size for x in shapes) == 247_577_856


def test_a_trial_is_of_fewer_steps() -> None:
    with pytest.raises(ValueError, match="--shorter 0 divides the steps"):
        one_shot.main(Config(shorter=0))
