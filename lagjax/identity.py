"""What trained a run, so that results of one training step are not passed off as another's.

The functions of one trial (its loop's beginning, a step, an evaluation), as they are before vmap
and sharding, are traced, and their jaxprs are the identity: the learning rate's schedule, the
optimizer, the loss and all constants are in them. RUN/programs/ keeps them as text. On resuming
they must be the same; where versions or the device have changed, and with them perhaps how the same
mathematics is traced, a few steps on record are made again instead and must come out alike.
"""

import contextlib
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterable

import jax
import numpy as np
from jax.extend import core
from jax.typing import ArrayLike

from lagjax.executors.worker import Worker
from lagjax.executors.workload import Workload
from lagjax.fingerprint import digest, environment
from lagjax.initial import Group
from lagjax.jobs import Trial
from lagjax.store.directory import Store
from lagjax.store.files import write_atomically

STEPS = 8
"""That are made again where the surroundings have changed."""
TOLERANCE, OF_HALVES = 1e-3, 1e-2
"""Of a loss, relatively, in float32 and in 16 bits: other kernels round otherwise."""


def check(store: Store, work: Workload, names: Iterable[str]) -> None:
    """Puts on record what trains these candidates, or compares it with what is there.

    Args:
        store: the run directory.
        work: what is run.
        names: of the candidates.

    Raises:
        ValueError: with the first line that differs, or with the losses that do.
    """
    # config.json keeps where the run began; how many cores there are changes no trace.
    here = environment()
    moved = store.differs({name: here[name] for name in ("versions", "device")})
    texts: dict[int, str] = {}
    for name in names:
        group = work.groups[name]
        if id(group) not in texts:
            texts[id(group)] = described(group)
        text = texts[id(group)]
        now = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        was = store.once(("programs", name), functools.partial(str, now))
        path = store.path / "programs" / f"{now}.txt"
        if was == now:
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, text)
        elif moved:
            _check_again(store, work, name)
        else:
            raise ValueError(
                f"{store.path} holds a run in which {name!r} was trained otherwise: "
                f"{_difference(path.with_stem(was), text)}; give the same optimizer, schedule, "
                "loss and model to go on with that run, or another directory for a new one"
            )


def tolerance(store: Store, name: str) -> float:
    """How far a candidate's losses may be from those of the same function, relatively."""
    path = store.path / "programs" / f"{store.config['programs'][name]}.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return OF_HALVES if re.search(r"\bb?f16\[", text) else TOLERANCE


def described(group: Group) -> str:
    """The functions of one trial of a group as text."""
    trained, key = jax.eval_shape(group.engine.trained, group.like), jax.random.key(0)
    shard = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), group.shards)
    parts = {
        "begin": jax.make_jaxpr(group.engine.init)(trained, key),
        "step": jax.make_jaxpr(group.engine.step)(group.like, group.batch),
        "evaluate": jax.make_jaxpr(group.engine.evaluate)(group.like, shard),
    }
    return "".join(f"{name}:\n{_text(closed)}\n" for name, closed in parts.items())


def _text(closed: core.ClosedJaxpr) -> str:
    # Neither addresses nor the names of functions say anything of what is computed.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
    text = re.sub(r"\bname=\S+", "", text)
    constants = [f"{np.shape(x)} {digest(x)}" for x in _constants(closed)]
    return "\n".join([text, *constants])


def _constants(closed: core.ClosedJaxpr) -> list[ArrayLike]:
    """Of a jaxpr and of those inside."""
    found: list[ArrayLike] = list(closed.consts)
    for equation in closed.jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                found += _constants(value)
    return found


def _difference(was: pathlib.Path, now: str) -> str:
    """The first lines of two programs that differ."""
    if not was.is_file():
        return "its training step is another"
    one, other = was.read_text(encoding="utf-8").splitlines(), now.splitlines()
    for line, changed in itertools.zip_longest(one, other, fillvalue="nothing"):
        if line != changed:
            return f"{line.strip()[:150]!r} there and {changed.strip()[:150]!r} here"
    return "its training step is another"


def _check_again(store: Store, work: Workload, name: str) -> None:
    """Makes a few steps on record again, from a checkpoint before them or from growing."""
    trials = [Trial(name, seed) for seed in range(work.task.seeds)]
    trial = next((each for each in trials if store.losses.count(each) > 0), None)
    if trial is None:
        return
    count = store.losses.count(trial)
    start = next((step for step in store.checkpoints.steps(trial) if step < count), -1)
    first = max(start, 0)
    was = store.losses.of(trial)[first : first + STEPS]
    with contextlib.closing(Worker(work)) as worker:
        now = worker.again(trial, start, len(was))
    apart = np.max(np.abs(now - was) / np.maximum(np.abs(was), 1e-6), initial=0.0)
    if not apart <= tolerance(store, name):
        raise ValueError(
            f"{store.path} holds a run in which {name!r} was trained otherwise: its training "
            f"losses from step {first + 1} on were {was.tolist()} and are now {now.tolist()}; "
            "give the same optimizer, schedule, loss and model, or another directory for a new run"
        )
    store.note(
        f"{name!r} is traced otherwise than where this run began; {len(was)} steps from step "
        f"{first} on were made again, and their losses are those on record to {apart:.1g}"
    )
