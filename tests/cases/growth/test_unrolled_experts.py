"""Sparse upcycling into a mixture whose experts are modules of their own, as Mixtral's are.

With parameters under experts/0/w1, experts/1/w1 and so on there must be one way to say it in a
table.
"""

import jax
import jax.numpy as jnp

import lagjax

KINDS = {"embed": lagjax.Residual(lagjax.RMSNorm()), "mlp": lagjax.Units("silu")}
LAYER = r"layers/(?P<layers>\d+)/"
SMALL = lagjax.Axes(
    {LAYER + "mlp/w1": "w1: <embed >mlp", LAYER + "mlp/w2": "w2: <mlp >embed+"}, KINDS
)


def layers(of_one):
    return {"layers": {str(i): of_one for i in range(2)}}


DENSE = layers({"mlp": {"w1": jnp.full((4, 6), 2.0), "w2": jnp.full((6, 4), 3.0)}})


def upcycled(moe, rows):
    """One layer's mixture."""
    axes = lagjax.Axes(
        {LAYER + "moe/gate": "<embed >experts"}
        | {LAYER + "moe/" + path: said for path, said in rows.items()},
        KINDS | {"experts": lagjax.Experts(top=2)},
    )
    target = lagjax.Model(lambda key: layers({"moe": moe}), None, axes)
    operator = lagjax.Grow(experts=lagjax.Upcycle())
    return operator(jax.random.key(0), DENSE, SMALL, target)["layers"]["1"]["moe"]


def test_stacked():
    moe = {"gate": jnp.ones((4, 3)), "w1": jnp.ones((3, 4, 6)), "w2": jnp.ones((3, 6, 4))}
    rows = {"w1": "w1: experts <embed >mlp", "w2": "w2: experts <mlp >embed+"}
    made = upcycled(moe, rows)
    assert (made["w1"] == 2).all()
    assert (made["w2"] == 3).all()


def test_modules_of_their_own():
    one = {"w1": jnp.ones((4, 6)), "w2": jnp.ones((6, 4))}
    moe = {"gate": jnp.ones((4, 3)), "experts": {str(number): one for number in range(3)}}
    found, refused = [], []
    for number in (r"(?P<experts>\d+)", r"(?P<expert>\d+)", r"\d+"):
        rows = {
            f"experts/{number}/w1": "w1: <embed >mlp",
            f"experts/{number}/w2": "w2: <mlp >embed+",
        }
        try:
            found.append(upcycled(moe, rows))
        except ValueError as error:
            refused.append(str(error))
    assert found, refused
    for made in found:
        for expert in made["experts"].values():
            assert (expert["w1"] == 2).all()
            assert (expert["w2"] == 3).all()
