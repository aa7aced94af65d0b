"""Alarms of the loop: one line each when a run goes wrong, with the flag that helps. docs/alarms.md explains them.

An alarm is a function of the logged rows alone. So a resumed run says what a straight one says, and nothing twice.
"""

from statistics import median

from config import D_ALARM

SMOOTH = 5  # rows: every level is compared with a median over so many, which a single bad step does not move
PATIENCE = 20  # rows: how long D may win; and until then D at chance is too early
FAST = 10  # rows in which responses may not grow or shrink by a factor of 3


def typical(rows: list[dict], name: str, count: int = SMOOTH) -> float:
    """The median of a metric over the last `count` rows; nan, which crosses no level, where one of them lacks it."""
    found = [row[name] for row in rows[-count:] if name in row]
    return median(found) if len(found) == count else float("nan")


def d_wins(rows: list[dict]) -> bool:
    """D is nearly always right for long, so hardly any text of the student earns the similarity reward."""
    return typical(rows, "d_accuracy", PATIENCE) > 0.97 and typical(rows, "similarity", PATIENCE) < 0.05


def growth(rows: list[dict]) -> float:
    """Tokens per response now, divided by those of FAST rows before; nan where there were none."""
    before = typical(rows[:-FAST], "tokens")
    return typical(rows, "tokens") / (before or float("nan"))


def gradient_climb(rows: list[dict]) -> float:
    """The gradient norm now, divided by the median of all rows before, at least FAST; nan where there are fewer."""
    before = typical(rows[:-SMOOTH], "gradient_norm", max(FAST, len(rows) - SMOOTH))
    return typical(rows, "gradient_norm") / (before or float("nan"))


ALARMS = [  # name, is its level crossed?, what is said; {metric} is the typical value now
    (
        "D wins",
        d_wins,
        "D's accuracy is {d_accuracy:.2f} and the student's similarity {similarity:.2f} for long, so the reward "
        "teaches nothing: lower --d-lr, or take --similarity continuous",
    ),
    (
        "D at chance",
        lambda rows: len(rows) <= PATIENCE and typical(rows, "d_accuracy") < D_ALARM,
        "D's accuracy is {d_accuracy:.2f} so early, so its reward teaches little: more --d-steps, lower --d-lr or --lr",
    ),
    (
        "responses grow",
        lambda rows: growth(rows) > 3,
        "{tokens:.1f} tokens, more than 3 times as many as 10 steps before: look at samples.jsonl, lower --lr",
    ),
    (
        "responses shrink",
        lambda rows: growth(rows) < 1 / 3,
        "{tokens:.1f} tokens, less than a third of 10 steps before: look at samples.jsonl, lower --lr",
    ),
    (
        "KL climbs",
        lambda rows: typical(rows, "kl") > 1,
        "KL {kl:.2f}: the student forgets its warm start: raise --beta, or lower --lr",
    ),
    (
        "gradient climbs",
        lambda rows: gradient_climb(rows) > 3,
        "the norm is {gradient_norm:.2f}, more than 3 times its median so far: lower --lr",
    ),
    (
        "cut off",
        lambda rows: typical(rows, "cut_off") > 0.2,
        "{cut_off:.0%} of the responses reach the limit without an end: raise --max-new-tokens",
    ),
    (
        "malformed",
        lambda rows: typical(rows, "malformed") > 0.2,
        "{malformed:.0%} of the texts are empty, end in a loop, or got no readable verdict: lower --lr, or look at "
        "--judge",
    ),
    (
        "dead groups",
        lambda rows: typical(rows, "dead_groups") > 0.95,
        "in {dead_groups:.0%} of the groups all rewards are equal, so nothing is learned: a larger --group-size, or "
        "questions of medium difficulty (tools.select)",
    ),
]


def raised(rows: list[dict]) -> list[str]:
    """The alarms whose level the last row crosses and none of the rows before did, one line each.

    rows: those of all steps of the loop so far, from metrics.jsonl.
    """
    now, out = {name: typical(rows, name) for name, x in rows[-1].items() if not isinstance(x, str)}, []
    for name, crossed, text in ALARMS:
        if crossed(rows) and not any(crossed(rows[:n]) for n in range(len(rows) - 1, 0, -1)):
            out.append(f"ALARM {name}: {text.format(**now)} (docs/alarms.md)")
    return out
