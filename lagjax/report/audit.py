"""The audit in words and rows, as plain text ready to print; page and terminal share it."""

from lagjax.analysis.audit import Audit, Moment
from lagjax.report.tables import NOTHING

HEADINGS = (
    "Step",
    "Spearman",
    "of the seeds",
    "with controls",
    "Kendall",
    "Pearson",
    "Regret",
    "normalised",
    "Top 1",
    "Top 3",
)
ABOUT = (
    "What the losses at each step would have told about the end. The correlations of a seed's losses with its own final "
    "ones are means over seeds, controls left out but in one column. Regret is what the lowest loss at the step loses at "
    "the end, in nats per token; normalised, a random choice has 1, and what lies within the noise floor 0. Top 1 and "
    "top 3 say how often the lowest at the step ends lowest, and how often what ends lowest is among the three lowest."
)


def rows(audit: Audit) -> list[tuple[str, ...]]:
    """A row for each step, as `HEADINGS`."""
    return [_row(moment) for moment in audit.moments]


def _row(moment: Moment) -> tuple[str, ...]:
    low_high = moment.spread and "{:.2f} to {:.2f}".format(*moment.spread)
    return (
        str(moment.step),
        _number(moment.agreement.spearman),
        (low_high or NOTHING).replace("-", "−"),
        _number(moment.with_controls.spearman),
        _number(moment.agreement.kendall),
        _number(moment.agreement.pearson),
        f"{moment.regret:.4f}",
        _number(moment.normalised),
        f"{moment.top1:.0%}",
        f"{moment.top3:.0%}",
    )


def sentences(audit: Audit) -> list[str]:
    """What the table does not say."""
    told = [
        (
            f"{audit.best} ended lowest, at {audit.final[audit.best]:.4f}. A random choice loses {audit.random_regret:.4f} "
            "nats per token against it."
        )
    ]
    if audit.noise_floor is None:
        told.append("One seed gives no noise floor: any of these may be luck.")
    else:
        told.append(
            f"The noise floor, two standard errors of the difference of two candidates over {audit.seeds} seeds, is "
            f"{audit.noise_floor:.4f} nats per token."
        )
    if audit.between_seeds is not None:
        told.append(
            f"Spearman's correlation of the final losses of two seeds is {_number(audit.between_seeds)}: no step can be "
            "expected to tell more about a fresh run."
        )
    found = audit.transition
    if found.step is None:
        told.append(f"No transition was found: {found.reason}.")
    else:
        told.append(
            f"The curves bend at step {found.step:.0f} (95 % interval {found.low:.0f} to {found.high:.0f}, over "
            f"candidates; two segments gain {found.gain:.0f} in BIC over one): the transition."
        )
    return told


def _number(value: float | None) -> str:
    # Rounded first, so that no zero has a sign.
    return NOTHING if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
