"""A tiny pre-norm residual net in plain JAX, and a task for it: tests of runs compile fast."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lagjax
from lagjax.store.directory import read

VOCAB, WIDTH = 16, 8
AXES = lagjax.Axes(
    {
        r"embed": "=vocab >embed",
        r"layers/up": "#layers <embed >mlp",
        r"layers/down": "#layers <mlp >embed+",
    },
    kinds={"embed": lagjax.Residual(lagjax.RMSNorm())},
)


def model(layers: int, width: int = WIDTH) -> lagjax.Model:
    """Predicts a token from the one before it; parameters are a plain dict, layers stacked."""

    def init(key: jax.Array) -> dict[str, object]:
        keys = jax.random.split(key, 3)
        return {
            "embed": 0.3 * jax.random.normal(keys[0], (VOCAB, width)),
            "layers": {
                "up": 0.3 * jax.random.normal(keys[1], (layers, width, 2 * width)),
                "down": 0.3 * jax.random.normal(keys[2], (layers, 2 * width, width)),
            },
        }

    def logits(params: dict, batch: jax.Array) -> jax.Array:
        x = params["embed"][batch[:, :-1]]
        for up, down in zip(params["layers"]["up"], params["layers"]["down"]):
            x = x + jnp.tanh(_norm(x) @ up) @ down
        return _norm(x) @ params["embed"].T

    # Traced once, and with it what differentiates it, however many runs there are of the model.
    traced = jax.jit(logits, inline=True)

    def loss(params: dict, batch: jax.Array, key: jax.Array | None) -> tuple:
        del key
        nats = optax.softmax_cross_entropy_with_integer_labels(traced(params, batch), batch[:, 1:])
        return nats.sum(), nats.size

    return lagjax.Model(init, loss, AXES, logits)


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def batch(seed: int, step: int) -> np.ndarray:
    """Walks on a ring of tokens, mostly upwards: int32 [4, 9]."""
    random = np.random.default_rng([seed, step])
    moves = random.choice([1, 1, 1, 3], size=(4, 9))
    return (np.cumsum(moves, axis=1) % VOCAB).astype(np.int32)


VALID = tuple(batch(1000, index) for index in range(6))


@functools.cache
def schedule(horizon: int) -> optax.GradientTransformation:
    """AdamW whose rate falls to 0 at a horizon: that of a longer training is another."""
    rate = optax.linear_schedule(3e-3, 0.0, horizon)
    return optax.inject_hyperparams(optax.adamw)(learning_rate=rate)


@functools.cache
def tx() -> optax.GradientTransformation:
    """AdamW whose state holds the learning rate."""
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(3e-3, 0.0, 200)
    )


SMALL, LARGE = model(2), model(4)
PARAMS = jax.jit(SMALL.init)(jax.random.key(5))


def task(**changes: object) -> lagjax.Task:
    """A task from the untrained small net, without averages unless they are asked for."""
    plain = lagjax.Task(SMALL, lagjax.Trained(PARAMS), tx(), batch, VALID, 24, averages={})
    return plain._replace(**changes)


def pool(*names: str) -> tuple[lagjax.Candidate, ...]:
    """Candidates of the depth pool by name; a few that differ by default."""
    wanted = names or ("stack", "identity-top", "zeroed-stack", "random-top")
    return tuple(each for each in lagjax.pools.depth(PARAMS, AXES, LARGE) if each.name in wanted)


def curve(path: pathlib.Path, candidate: str, seed: int = 0) -> list[dict]:
    """A trial's lines in a run directory."""
    return [x for x in read(path).curves if (x["candidate"], x["seed"]) == (candidate, seed)]


def without_times(path: pathlib.Path) -> list[dict]:
    """The lines of a run directory in a fixed order, without the seconds."""
    lines = [{key: x for key, x in line.items() if key != "seconds"} for line in read(path).curves]
    return sorted(lines, key=lambda line: (line["candidate"], line["seed"], line["step"]))


class Told:
    """A progress that keeps what it is told."""

    def __init__(self, then: Callable[[object], None] = lambda event: None) -> None:
        self.events: list = []
        self.notes: list[str] = []
        self._then = then

    def __call__(self, event: object) -> None:
        self.events.append(event)
        self._then(event)

    def note(self, text: str) -> None:
        self.notes.append(text)
