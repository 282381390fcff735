"""What papers of 2025 and 2026 add: perturbed growth, originals that keep their moments, experts of
whom as many are taken as before.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.algebra.plan import Perturb
from lagjax.algebra.provenance import Origin, added, origins
from lagjax.growth import pools
from lagjax.growth.depth import Fresh, Stack
from lagjax.growth.experts import Duplicate, by_gradient
from lagjax.growth.operator import Grow
from lagjax.growth.width import Tile
from lagjax.model import mean_loss
from lagjax.state import carry, scale_by_growth
from tests import toy
from tests.growth import models

KEY = jax.random.key(1)
SMALL, LARGE = models.bare(4, 6, 2), models.bare(6, 8, 3)
WIDER = pools.WIDTH["zero-pad"]


def planned(operator, small=SMALL, large=LARGE):
    return operator.plan(KEY, small.layout(), large.layout())


def test_shrink_zero_pad_perturb():
    params, blank = models.drawn(SMALL), flatten(LARGE.init(KEY))
    operator = Grow(depth=Fresh(), width=WIDER, perturb=Perturb(0.4, 0.5))
    made = flatten(operator(KEY, params, SMALL.axes, LARGE))
    for path in ("l/0/up", "l/1/up", "embed"):
        padded = np.zeros_like(blank[path])
        old = np.asarray(flatten(params)[path])
        padded[tuple(map(slice, old.shape))] = old
        expected = 0.4 * padded + 0.5 * np.asarray(blank[path])
        np.testing.assert_allclose(made[path], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(made["l/2/up"], 0.5 * np.asarray(blank["l/2/up"]), rtol=1e-6)


@pytest.mark.parametrize(
    "perturb, kind", [((0.4, 1.0), "none"), ((1.0, 0.1), "approximate"), ((1.0, 0.0), "exact")]
)
def test_perturbed_growth_says_what_it_is(perturb, kind):
    params, large = models.drawn(SMALL), models.bare(4, 6, 3)
    operator = Grow(depth=Fresh(zero=True), perturb=Perturb(*perturb))
    found = lagjax.certify(operator, SMALL, large, params, [models.BATCH], steps=1)
    assert found.kind == kind
    assert (found.max_diff["float32"] < 1e-5) is (kind == "exact")
    assert len(found.violations) == sum([perturb[0] != 1, perturb[1] != 0])
    of = origins(planned(operator, large=large))[0]
    assert (of == (Origin.COPIED if kind == "exact" else Origin.SCALED)).all()


def test_perturbing_a_fusion_is_refused():
    with pytest.raises(ValueError, match="leave out width=, experts= and perturb="):
        Grow(fuse=True, perturb=Perturb())
    with pytest.raises(ValueError, match="not finite"):
        Grow(perturb=Perturb(float("nan"), 0.0))


def test_originals_keep_their_moments():
    operator, large = Grow(depth=Stack(), width={"mlp": Tile()}), models.bare(4, 12, 4)
    tx = optax.chain(optax.scale_by_adam(), scale_by_growth(warmup=10))
    params = models.drawn(SMALL)
    grown = jax.jit(lambda params: operator(KEY, params, SMALL.axes, large))(params)
    adam, growth = jax.jit(tx.init)(params)
    old = jax.tree.map(lambda x: jnp.full_like(x, 3), adam), growth._replace(steps=jnp.asarray(3))
    plan = planned(operator, large=large)
    whole, made = jax.jit(
        lambda *given: [carry(plan, *given, tx, "continue", originals=x) for x in (False, True)]
    )(old, params, grown)
    # Layers 2 and 3 are copies, and so are units 6 to 11.
    masks = dict(zip(plan.target.paths, added(plan)))
    assert masks["l/2/norm"].all() and not masks["l/1/norm"].any() and not masks["embed"].any()
    assert masks["l/1/up"][:, 6:].all() and not masks["l/1/up"][:, :6].any()
    for path, mask in masks.items():
        for field in ("mu", "nu"):
            kept, given = (flatten(getattr(x[0], field))[path] for x in (whole, made))
            np.testing.assert_array_equal(given, np.where(mask, 0, kept))
            assert (np.asarray(kept) != 0).all()
    born = flatten(made[1].born)
    assert (np.asarray(born["l/1/up"])[:, 6:] == 3).all()
    # The first step of what begins anew is a tenth of Adam's first, without its old count.
    ones = jax.tree.map(jnp.ones_like, grown)
    step = flatten(jax.jit(tx.update)(ones, made, grown)[0])
    np.testing.assert_allclose(step["l/2/norm"], 0.1, rtol=1e-3)


def test_originals_in_a_run(tmp_path):
    source = lagjax.Trained(toy.PARAMS, toy.tx().init(toy.PARAMS))
    (stack,) = toy.pool("stack")
    ways = {x: lagjax.Transfer(x, "continue") for x in ("grow", "originals", "reset")}
    pool = [stack._replace(name=name, transfer=way) for name, way in ways.items()]
    # Moments that are not 0, as training leaves them.
    moved = jax.tree_util.tree_map_with_path(
        lambda keys, x: x + 1e-3 if "state[0].mu" in jax.tree_util.keystr(keys) else x,
        source.opt_state,
    )
    task = toy.task(source=source._replace(opt_state=moved), horizon=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lagjax.report, "write", lambda path: path)
        lagjax.run(task, pool, lagjax.FixedLag(1), tmp_path, progress=toy.Told())
    norms = [toy.curve(tmp_path, name)[1]["update_norm"] for name in ways]
    assert len(set(norms)) == 3
    with pytest.raises(ValueError, match="moments='originals'.*need the small model's optimizer"):
        lagjax.run(toy.task(), pool[1:2], lagjax.FixedLag(1), tmp_path / "b", progress=toy.Told())


def test_copies_of_experts_go_where_scores_are_highest():
    made = Duplicate((1.0, 8.0, 3.0)).map(3, 7)
    assert made.source.tolist() == [0, 1, 2, 1, 1, 2, 1] and made.rivals
    assert Duplicate().map(2, 6).source.tolist() == [0, 1, 0, 1, 0, 1]
    for scores in ((1.0,), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)):
        with pytest.raises(ValueError, match="give 3 scores, none below 0"):
            Duplicate(scores).map(3, 4)


def mixture(experts, top):
    """A matrix for each token, of experts of which its router takes `top`."""
    rows = {"embed": "<vocab >embed", "router": "<embed >experts", "expert": "experts <embed >out"}
    kinds = {"embed": lagjax.Channels(), "experts": lagjax.Experts(top)}
    kinds |= dict.fromkeys(("vocab", "out"), lagjax.Lookup())

    def apply(params, batch):
        x = params["embed"][batch[:, :-1]]
        best, chosen = jax.lax.top_k(x @ params["router"], top)
        made = jnp.einsum("bte,xeo->btxo", x, params["expert"])
        taken = jnp.take_along_axis(made, chosen[..., None], 2)
        return (jax.nn.softmax(best)[..., None] * taken).sum(2)

    def loss(params, batch, key):
        del key
        nats = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch), batch[:, 1:])
        return nats.sum(), nats.size

    def init(key):
        shapes = {"embed": (7, 4), "router": (4, experts), "expert": (experts, 4, 7)}
        return {name: jax.random.normal(key, shape) for name, shape in shapes.items()}

    return lagjax.Model(init, loss, Axes(rows, kinds), apply)


@pytest.mark.parametrize("top, exact", [(1, True), (2, False)])
def test_as_many_experts_a_token_as_before(top, exact):
    small, large = mixture(4, top), mixture(6, top)
    params = models.drawn(small)
    operator = Grow(width={"experts": Duplicate((1.0, 5.0, 1.0, 1.0))})
    plan = planned(operator, small, large)
    assert not plan.requires and plan.exact_by_table is exact
    if not exact:
        assert "copies of one take others' place" in str(plan.violations[0])
    grown = operator(KEY, params, small.axes, large)
    one, other = small.apply(params, models.BATCH), large.apply(grown, models.BATCH)
    assert (float(jnp.abs(one - other).max()) < 1e-5) is exact


def test_scores_by_gradient():
    model = mixture(4, 1)
    params = models.drawn(model)
    # Equal logits go to the lower number: no token takes expert 2.
    params["router"] = params["router"].at[:, 2].set(params["router"][:, 0])
    scores = by_gradient(params, model, [models.BATCH, models.BATCH])
    slope = jax.jit(jax.grad(lambda params: mean_loss(*model.loss(params, models.BATCH, None))))
    gradient = slope(params)
    squares = 2 * jnp.square(gradient["expert"]).sum((1, 2))
    np.testing.assert_allclose(np.square(scores), squares, rtol=1e-5)
    assert scores[2] == 0 and sum(score > 0 for score in scores) > 1
    with pytest.raises(ValueError, match="in place of 'experts'"):
        by_gradient(toy.PARAMS, toy.SMALL, [toy.VALID[0]])
