"""Candidates that their tables call exact, and that begin elsewhere than the small model ended.

A proof takes the table's silence for agreement. What a table does not tell shows for nothing in a
run: an exact candidate's loss right after growing is the small model's.
"""

import functools
from collections.abc import Iterable

import numpy as np

from lagjax.evidence import Evidence
from lagjax.growth.operator import Same
from lagjax.identity import tolerance
from lagjax.jobs import SOURCE
from lagjax.store.directory import Store


def check(store: Store, evidence: Evidence, names: Iterable[str]) -> None:
    """Notes those of some candidates that do not begin where they claim to, in config.json too."""
    claimed = {name: loss for name in names if (loss := _claimed(evidence, name)) is not None}
    if not claimed:
        return
    reference = _reference(store, evidence)
    # Without the small model's loss, those that claim to be the same are compared with each other.
    lowest = min(claimed, key=lambda name: claimed[name])
    whose, loss = reference or (f"{lowest!r}, which claims the same, begins", claimed[lowest])
    for name, begins in claimed.items():
        apart = abs(begins - loss) / max(abs(loss), 1e-6)
        told = name in store.config.get("unkept", {})
        if apart <= tolerance(store, name) or told:
            continue
        suspect = evidence.known[name].suspect
        text = (
            f"{name!r} is exact by its table and begins at {begins:.5g}, but {whose} at "
            f"{loss:.5g}: the table does not tell all that the model does. Look first at "
            f"{suspect}; lagjax.certify finds the row by experiment"
        )
        store.once(("unkept", name), functools.partial(str, text))
        store.note(text)


def _claimed(evidence: Evidence, name: str) -> float | None:
    return evidence.loss(name, 0) if evidence.known[name].exact else None


def _reference(store: Store, evidence: Evidence) -> tuple[str, float] | None:
    """Where the small model stands on the same shards, and how that is known."""
    trained, task = store.config.get("source"), store.config["task"]
    if trained and trained.get("valid") == task["valid"] and trained["steps"] == task["step"]:
        for line in store.curves:
            if line["candidate"] == SOURCE and line["step"] == task["step"]:
                # On those shards that the candidates were evaluated on.
                counts = evidence.counts / evidence.counts.sum()
                shards = line["valid_loss_shards"][: len(counts)]
                return "the small model ended", float(np.dot(shards, counts))
    for name, known in evidence.known.items():
        loss = evidence.loss(name, 0)
        if isinstance(known.candidate.operator, Same) and loss is not None:
            return f"the small model, {name!r}, stands", loss
    return None
