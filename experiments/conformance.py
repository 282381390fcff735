"""Every growth operator on every kind of transformer: what it claims, what is proved of it, and
what is measured.

    python -m experiments.conformance           # half an hour on 2 CPU cores; goes on after a kill
    python -m experiments.conformance --quick   # two families of models, a minute

Writes `results/conformance.jsonl`, a row for each operator and family of models where it applies.
Exact means that outputs differ by at most 1e-10 in float64 and 1e-4 in float32, relative to their
scale. The families cover every pair of choices. No row is left out because it fails: it says what
it is. `python -m experiments.tables` makes the README's table of operators.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.cli import command
from experiments.models import transformer
from experiments.models.transformer import Config
from experiments.rows import RESULTS
from lagjax.algebra.plan import Perturb
from lagjax.certify.certify import certify, plan_of
from lagjax.fingerprint import digest, versions
from lagjax.growth import pools
from lagjax.growth.depth import Fresh, Interleave, Scaled, Stack
from lagjax.growth.experts import Duplicate, Upcycle
from lagjax.growth.gradmax import gradmax
from lagjax.growth.learned import fit_ligo
from lagjax.growth.masked import masked, silenced
from lagjax.growth.operator import Grow
from lagjax.growth.width import (
    Average,
    Centred,
    Extend,
    Isometric,
    Net2Net,
    Noisy,
    NoisySplit,
    Paired,
    RandomIn,
    RandomPad,
    ScalarSplit,
    Tile,
    ZeroPad,
)
from lagjax.model import Growth, Model
from lagjax.store.directory import write_atomically

CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": ("rms", "layer"),
    "pre": (True, False),
    "attention": ("MHA", "GQA", "MQA"),
    "positions": ("learned", "rope", "relative"),
    "tied": (True, False),
    "gated": (False, True),
    "implementation": ("scanned", "unrolled", "nnx"),
}
HEADS = {"MHA": {"kv": 2, "group": 1}, "GQA": {"kv": 2, "group": 2}, "MQA": {"kv": 1, "group": 2}}
KEY = jax.random.key(1)
BATCHES = [
    np.random.default_rng(seed).integers(7, size=(4, 7), dtype=np.int32) for seed in range(4)
]

Family = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator, the large model it is for, and where it says that it is exact.

    Attributes:
        operator: what grows, or a function that makes it of the small model's parameters and the
            two models.
        grown: the small model's configuration → what the large one's has otherwise; None where the
            operator has no use.
        claims: of which small models its documentation says that it is exact.
        small: what the small model has otherwise than its family.
    """

    operator: Growth | Callable[[Any, Model, Model], Growth]
    grown: Callable[[Config], dict[str, Any] | None]
    claims: Callable[[Config], bool]
    small: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SelfFusion:
    """Fuses a model with itself."""

    fuse: Grow = dataclasses.field(default_factory=lambda: Grow(fuse=True))

    def __call__(self, key: Any, params: Any, source: Any, target: Model, /) -> Any:
        return self.fuse(key, (params, params), source, target)

    def plan(self, key: Any, source: Any, target: Any, /) -> Any:
        return self.fuse.plan(key, source, target)


@dataclasses.dataclass(frozen=True)
class AtMaskZero:
    """Another operator, for a large model in which what is new is masked by 0."""

    base: Grow

    def __call__(self, key: Any, params: Any, source: Any, target: Model, /) -> Any:
        return self.base(key, params, source, target)

    def plan(self, key: Any, source: Any, target: Any, /) -> Any:
        return silenced(self.base.plan(key, source, target))


def gradmax_of(params: Any, small: Model, large: Model) -> Growth:
    return gradmax(KEY, params, small.axes, large, BATCHES[:1]).operator


def ligo_of(params: Any, small: Model, large: Model) -> Growth:
    return fit_ligo(KEY, params, small.axes, large, BATCHES * 5).operator


def times(factor: float, *names: str) -> Callable[[Config], dict[str, Any]]:
    return lambda c: {name: round(factor * getattr(c, name)) for name in names}


def always(c: Config) -> bool:
    return True


def never(c: Config) -> bool:
    return False


def pre(c: Config) -> bool:
    return c.pre


def rms(c: Config) -> bool:
    return c.norm == "rms"


def pre_layer(c: Config) -> bool:
    return c.norm == "layer" and c.pre


ALL = ("width", "kv", "mlp")
NOISE = NoisySplit(0.1)
NONE, ONE, FEW = {"layers": 0}, {"layers": 1}, {"experts": 2, "top": 1}
PADDED = pools.WIDTH["zero-pad"]
# What grows the stream by padding keeps its mean only where Centred can take it away.
CLAIMS = {
    "zero-pad": lambda c: rms(c) or (pre(c) and not c.tied),
    "paired": lambda c: rms(c) or (pre(c) and not c.tied),
    "net2net": never,
    "aki": never,
    "random-pad": never,
}
CASES = {
    **{
        name: Case(Grow(width=way), times(2, *ALL), CLAIMS.get(name, always))
        for name, way in pools.WIDTH.items()
    },
    "zero-pad (residual)": Case(Grow(width={"embed": ZeroPad()}), times(1.5, "width"), rms),
    "isometric (residual)": Case(Grow(width={"embed": Isometric(NOISE)}), times(1.5, "width"), rms),
    "centred (residual)": Case(
        Grow(width={"embed": Centred()}),
        times(1.5, "width"),
        lambda c: pre_layer(c) and not c.tied,
    ),
    "average (residual)": Case(
        Grow(width={"embed": Average(NOISE)}), times(2.5, "width"), pre_layer
    ),
    "net2net (residual)": Case(Grow(width={"embed": Net2Net()}), times(1.5, "width"), never),
    "net2net (mlp)": Case(Grow(width={"mlp": Net2Net()}), times(1.5, "mlp"), always),
    "net2net (heads)": Case(Grow(width={"kv": Net2Net()}), lambda c: {"kv": c.kv + 1}, always),
    "queries in a group": Case(
        Grow(width={"group": Net2Net(split=NOISE)}), lambda c: {"group": c.group + 1}, always
    ),
    "group duplication": Case(
        Grow(width={"kv": Tile(NOISE)}),
        lambda c: {"kv": 2 * c.kv} if c.group > 1 else None,
        always,
    ),
    "split .3/.7": Case(Grow(width={"mlp": Tile(ScalarSplit(0.3))}), times(2, "mlp"), always),
    "split -.5/1.5": Case(Grow(width={"mlp": Tile(ScalarSplit(-0.5))}), times(2, "mlp"), always),
    "random in, zero out": Case(
        Grow(width={"mlp": RandomIn(), "kv": RandomIn()}),
        lambda c: {"mlp": c.mlp + 3, "kv": c.kv + 1},
        always,
    ),
    "zero in, random out": Case(Grow(width={"mlp": ZeroPad()}), times(1.5, "mlp"), always),
    "paired (mlp)": Case(Grow(width={"mlp": Paired()}), lambda c: {"mlp": c.mlp + 4}, always),
    "head size, zero-pad": Case(
        Grow(width={"qk": ZeroPad(), "v": ZeroPad()}), times(1.5, "head_dim"), always
    ),
    "head size, duplicated": Case(
        Grow(width={"qk": Tile(), "v": Tile(NOISE)}), times(2, "head_dim"), always
    ),
    "noisy copies": Case(Grow(width={"mlp": Noisy(Tile(), 0.01)}), times(2, "mlp"), never),
    "longer context": Case(
        Grow(width={"positions": Extend()}),
        lambda c: {"window": c.window + 3} if c.positions == "learned" else None,
        always,
    ),
    "larger vocabulary": Case(
        Grow(width={"vocab": Extend(mean=True)}), lambda c: {"vocab": c.vocab + 3}, never
    ),
    **{
        name: Case(
            Grow(depth=strategy),
            times(2, "layers"),
            # Added layers whose outputs are zero.
            pre if name.startswith(("zeroed-", "identity-")) else never,
        )
        for name, strategy in pools.DEPTH.items()
    },
    "zeroed and isometric": Case(
        Grow(depth=Scaled(Stack()), width={"embed": Isometric(), "mlp": RandomIn()}),
        times(1.5, "layers", "width", "mlp"),
        lambda c: pre(c) and rms(c),
    ),
    "masked units, at 0": Case(
        AtMaskZero(Grow(width={"mlp": RandomPad(), "kv": RandomPad()})),
        lambda c: {"mlp": c.mlp + 3, "kv": c.kv + 1},
        always,
    ),
    "masked layers, at 0": Case(AtMaskZero(Grow(depth=Fresh("top"))), lambda c: {"layers": 3}, pre),
    "GradMax": Case(gradmax_of, lambda c: None if c.gated else {"mlp": c.mlp + 3}, always),
    "LiGO, 20 steps": Case(ligo_of, times(2, "layers", "width", "mlp"), never),
    "self-fusion": Case(SelfFusion(), times(2, *ALL), always),
    "upcycling": Case(Grow(experts=Upcycle()), lambda c: {"experts": 3, "top": 2}, always),
    "expert duplication": Case(
        Grow(width={"experts": Tile()}),
        lambda c: {"experts": 4},
        always,
        small={"experts": 2, "top": 1},
    ),
    **{
        f"{name}, on no layers": Case(
            Grow(depth=strategy), lambda c: {"layers": 2}, pre if name == "zeroed" else never, NONE
        )
        for name, strategy in pools.FROM_NONE.items()
        if name != "half"
    },
    "zeroed copies of one layer": Case(
        Grow(depth=Scaled(Stack())), lambda c: {"layers": 3}, pre, ONE
    ),
    "shrink, zero-pad, perturb (width)": Case(
        Grow(width=PADDED, perturb=Perturb(0.4, 1.0)), times(2, *ALL), never
    ),
    "shrink, zero-pad, perturb (depth)": Case(
        Grow(depth=Fresh(), perturb=Perturb(0.4, 1.0)), times(2, "layers"), never
    ),
    "zero-pad, perturb": Case(
        Grow(width=PADDED, perturb=Perturb(1.0, 0.01)), times(2, *ALL), never
    ),
    "experts, same top": Case(
        Grow(width={"experts": Duplicate()}), lambda c: {"experts": 4}, always, FEW
    ),
    "experts by score, same top": Case(
        Grow(width={"experts": Duplicate((1.0, 3.0), noise=0.01)}),
        lambda c: {"experts": 5},
        never,
        FEW,
    ),
    "experts, same top of two": Case(
        Grow(width={"experts": Duplicate()}), lambda c: {"experts": 4}, never, FEW | {"top": 2}
    ),
    "interposed layers, noisy experts": Case(
        Grow(depth=Interleave(), width={"experts": Noisy(Tile(), 0.01)}),
        lambda c: {"layers": 4, "experts": 4},
        never,
        FEW,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is certified."""

    results: Path = RESULTS / "conformance.jsonl"
    """Where the rows go; those that are there are not made again."""
    quick: bool = False
    """The first two families only."""
    anew: bool = False
    """Make the rows that are there anew."""
    digests: bool = False
    """Instead of certifying, check that every operator still grows the trees of `digests.jsonl`,
    bit for bit; where that file is missing, write it."""


def families() -> list[Family]:
    """Choices in which every pair occurs: greedily the one that covers most pairs that are
    missing.
    """
    names = list(CHOICES)
    every = [dict(zip(names, values)) for values in itertools.product(*CHOICES.values())]

    def pairs(family: Family) -> set[Any]:
        return set(itertools.combinations(family.items(), 2))

    missing = set().union(*map(pairs, every))
    chosen = []
    while missing:
        best = max(every, key=lambda family: len(pairs(family) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def config_of(family: Family, **more: Any) -> Config:
    """The small model of a family; sizes differ from axis to axis, so that none can be taken for
    another.
    """
    choices = {name: value for name, value in family.items() if name != "attention"}
    sizes = {"layers": 2, "width": 6, "head_dim": 4, "mlp": 8, "window": 6, "vocab": 7}
    return Config(**sizes | HEADS[family["attention"]] | choices | more)


def name_of(family: Family) -> str:
    return " ".join(
        [
            "pre" if family["pre"] else "post",
            {"rms": "RMSNorm", "layer": "LayerNorm"}[family["norm"]],
            family["attention"],
            family["positions"],
            "tied" if family["tied"] else "untied",
            "gated" if family["gated"] else "plain",
            family["implementation"],
        ]
    )


def drawn(model: Model) -> Any:
    """Parameters of which none has the value of an initialisation, such as a norm's scale of 1."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)), shapes
    )


def row(name: str, case: Case, family: Family) -> dict[str, Any] | None:
    """Certifies one operator on one family; None where it does not apply."""
    small = config_of(family, **case.small)
    if (changes := case.grown(small)) is None:
        return None
    asked = dataclasses.replace(small, **changes)
    models = transformer.model(small), transformer.model(asked)
    params = drawn(models[0])
    operator: Any = case.operator
    if not dataclasses.is_dataclass(operator):
        operator = operator(params, *models)
    plan = plan_of(operator, KEY, *models, params)
    large = transformer.required(asked, plan.requires if plan else (), small)

    def pair(dtype: str) -> tuple[Model, Model]:
        one, other = (
            transformer.model(dataclasses.replace(x, dtype=dtype)) for x in (small, large)
        )
        if isinstance(operator, AtMaskZero):
            unmasked = plan_of(operator.base, KEY, *models, params)
            other = masked(other, unmasked)(0.0)
        return one, other

    exact = plan is not None and plan.exact_by_table
    found = certify(operator, *pair("float32"), params, BATCHES, key=KEY, factory=pair)
    return {
        "operator": name,
        "model": name_of(family),
        "claimed": "exact" if case.claims(small) else "not exact",
        "proved": found.kind,
        "agrees": exact
        == (found.max_diff["float64"] <= 1e-10 and found.max_diff["float32"] <= 1e-4),
        "requires": [str(one) for one in found.requires],
        "violations": [str(one) for one in found.violations],
        "max_diff_f64": found.max_diff["float64"],
        "max_diff_f32": found.max_diff["float32"],
        "max_diff_bf16": found.max_diff["bfloat16"],
        "dead_fraction": found.dead_fraction,
        "dead": found.dead,
        "twin_distance": found.twin_distance,
        "ranks": found.ranks,
        "written": repr(operator),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }


def refused(name: str, case: Case, family: Family, why: str) -> dict[str, Any]:
    """The row of an operator that does not take a model."""
    numbers = ("max_diff_f64", "max_diff_f32", "max_diff_bf16", "dead_fraction")
    return {
        "operator": name,
        "model": name_of(family),
        "claimed": "exact" if case.claims(config_of(family, **case.small)) else "not exact",
        "proved": "refused",
        "agrees": True,
        "requires": [],
        "violations": [why],
        **dict.fromkeys((*numbers, "twin_distance")),
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
    }


def grown(name: str, family: Family, key: Any) -> str | None:
    """The digest of what an operator makes of a family's small model; None where it does not apply
    or refuses.
    """
    small = config_of(family, **CASES[name].small)
    if (changes := CASES[name].grown(small)) is None:
        return None
    models = transformer.model(small), transformer.model(dataclasses.replace(small, **changes))
    params = drawn(models[0])
    operator: Any = CASES[name].operator
    try:
        if not dataclasses.is_dataclass(operator):
            operator = operator(params, *models)
        call = jax.jit(lambda key, params: operator(key, params, models[0].axes, models[1]))
        return digest(call(key, params))
    except ValueError:
        return None


def check_digests(families: list[Family], path: Path) -> None:
    """Grows every tree with two keys, and compares it with the one that was grown before; those of
    operators that came later are not on record. Writes the file if it is new.

    The bits are those of one kind of processor and of the versions in the rows: the gradients that
    GradMax and LiGO take are others on another.
    """
    lines = path.read_text().splitlines() if path.is_file() else []
    before = {tuple(row[:3]): row[3] for row in map(json.loads, lines)}
    rows, differing, compared = [], [], 0
    for family in families:
        jax.clear_caches()
        for name, seed in itertools.product(CASES, (1, 2)):
            found = grown(name, family, jax.random.key(seed))
            rows.append([name, name_of(family), seed, found])
            if (key := (name, name_of(family), seed)) in before:
                compared += 1
                differing += [rows[-1]] * (before[key] != found)
    if not before:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    if differing:
        raise ValueError(
            f"{len(differing)} trees of {compared} are others than before: {differing[:20]}"
        )
    print(f"{len(rows)} trees, {compared} of them on record, and none another than before")


def main(arguments: Arguments) -> None:
    """Makes the rows that are missing."""
    # The models are so small that compiling them is most of the time.
    jax.config.update("jax_disable_most_optimizations", True)
    if arguments.digests:
        chosen = families()[: 2 if arguments.quick else None]
        return check_digests(chosen, arguments.results.with_name("digests.jsonl"))
    path = arguments.results
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.is_file() and not arguments.anew else []
    # Rows of operators that are no more are dropped.
    rows = [one for one in map(json.loads, lines) if one["operator"] in CASES]
    write_atomically(path, "".join(json.dumps(one) + "\n" for one in rows))
    done = {(one["operator"], one["model"]) for one in rows}
    chosen = families()[: 2 if arguments.quick else None]
    wanted = [(name, family) for family in chosen for name in CASES]
    console = Console(stderr=True, highlight=False)
    for number, (name, family) in enumerate(wanted, 1):
        if (name, name_of(family)) in done:
            continue
        if name == next(iter(CASES)):
            # Compiled programs of one family are of no use to another.
            jax.clear_caches()
        try:
            made = row(name, CASES[name], family)
        except ValueError as error:
            made = refused(name, CASES[name], family, str(error))
        if made is None:
            continue
        with path.open("a") as file:
            file.write(json.dumps(made) + "\n")
        measured = made["max_diff_f64"]
        console.print(
            f"{number}/{len(wanted)} {name} on {made['model']}: {made['proved']}"
            + ("" if measured is None else f", {measured:.1e} in float64")
            + ("" if made["agrees"] else "  PROOF AND MEASUREMENT DISAGREE")
        )


cli = command(main, "conformance", Arguments, __doc__, "interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(cli())
