"""What the notebooks ask to be trained, as groups of like SAEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saelib.activations.lm import resolve_site

# Further λ a curve takes until its L0 is bracketed, and more with each `refine`, means of recorded
# runs: from a grid of three λ or more; from the two that bracket it at another length; in 04; in
# 05.
MORE = {"grid": (0.0, 0.3), "length": (0.7, 0.5), "resampling": (0.33, 0.35), "cause": (0.3, 0.0)}
# These two kinds are not in results.csv.
DEEP = "depths"
NOISE = "shuffled dimensions"

Parameters = Mapping[str, Any]


class Group(NamedTuple):
    """SAEs of one kind that a notebook trains and measures."""

    what: str
    count: float  # expected, where an L0 is looked for
    sites: Sequence[int]  # spread evenly over them
    tokens: int  # training tokens of each; 0: measured again, not trained
    batch: int
    latents: int
    rising: float  # share of the steps in which λ rises
    gated: bool = False
    loss: bool = False  # next-token loss is measured too


def _sites(p: Parameters, name: str, layers: int) -> list[int]:
    return sorted({resolve_site(site, layers) for site in p[name]})


def _own(p: Parameters, times: float = 1.0) -> dict[str, Any]:
    tokens = round(times * p["tokens"] / p["batch_size"]) * p["batch_size"]
    return {
        "tokens": tokens,
        "batch": p["batch_size"],
        "latents": p["n_latents"],
        "rising": p["lam_warmup"],
    }


def _more(kind: str, p: Parameters) -> float:
    return MORE[kind][0] + MORE[kind][1] * p.get("refine", 0)


def train_sae(p: Parameters, layers: int) -> list[Group]:
    """Notebook 02: the sweep, the original recipe, four schedules at every rate, then five at the
    best over seeds.
    """
    at, where, own = _sites(p, "sites", layers), _sites(p, "schedule_sites", layers), _own(p)
    seeds, again, tried = len(p["seeds"]), len(p["schedule_seeds"]) - 1, 4 * len(where)
    return [
        Group("sweep", len(at) * seeds * len(p["lambdas"]), at, **own, loss=True),
        Group(
            "original recipe", len(at) * seeds, at, **own | {"rising": 3.0}, loss=True
        ),  # L0 stays in the hundreds
        Group("schedules, every rate", tried * len(p["schedule_lrs"]), where, **own),
        Group(
            "schedules, seeds", tried * again + len(where) * (again + 1), where, **own, loss=True
        ),
        Group("schedules, measured again", tried, where, **own | {"tokens": 0}, loss=True),
    ]


def train_gated(p: Parameters, layers: int) -> list[Group]:
    """Notebook 03: two Gated arms (the plain one is 02's), gates watched, three arms at other
    lengths.
    """
    at, own, seeds = _sites(p, "sites", layers), _own(p), len(p["seeds"])
    first = len(at) * seeds * (len(p["lambdas"]) + len(p["lambdas_two_term"]))
    curve, lengths = 2 + _more("length", p), [times for times in p["lengths"] if times != 1]
    return [
        Group("Gated arms", first, at, **own, gated=True, loss=True),
        Group(
            "further λ",
            3 * seeds * (len(at) + 1) * _more("grid", p),
            at,
            **own,
            gated=True,
            loss=True,
        ),
        Group("gates watched", 3 * seeds, at[len(at) // 2 :][:1], **own, gated=True, loss=True),
        *(
            Group(f"{t:g} x tokens", 3 * seeds * curve, at, **_own(p, t), gated=True)
            for t in lengths
        ),
    ]


def resampling(p: Parameters, layers: int) -> list[Group]:
    """Notebook 04: in two settings a curve for each of three arms, off and on, site and seed."""
    at = _sites(p, "resample_sites", layers)
    curves = 6 * len(at) * len(p["seeds"])
    begun = {
        name: len(p[f"{name}_lambdas"]) + _more("resampling", p) for name in ("normal", "dying")
    }
    return [
        Group(f"{name} setting", curves * n, at, **_own(p), gated=True) for name, n in begun.items()
    ]


def layer_analysis(p: Parameters, layers: int) -> list[Group]:
    """Notebook 05: eight coalitions and five more choices at two sites, longer and wider SAEs,
    noise, all depths.
    """
    at, seeds, split = _sites(p, "sites", layers), len(p["cause_seeds"]), len(p["split_seeds"])
    pair, choice = at[-2:], 2 * seeds * (len(p["cause_lambdas"]) + _more("cause", p))
    own = _own(p) | {
        "tokens": p["cause_tokens"],
        "batch": p["cause_batch"],
        "latents": p["cause_latents"],
    }
    deep = sorted({*range(0, layers + 1, p["depth_step"]), *at})
    return [
        Group("coalitions and choices", 16 * seeds + 11 * choice, pair, **own),
        Group("twice the latents", choice, pair, **own | {"latents": 2 * own["latents"]}),
        Group("twice the tokens", choice, pair, **own | {"tokens": 2 * own["tokens"]}),
        Group("items or selection", len(at) * split, at, **_own(p), loss=True),
        Group("longer", len(at) * split, at, **_own(p, p["longer"])),
        Group(
            "wider",
            len(at) * split,
            at,
            **_own(p) | {"latents": round(p["wider"] * p["n_latents"])},
        ),
        Group(NOISE, len(at) * (len(p["shuffled_lambdas"]) + 1), at, **_own(p)),
        Group(
            DEEP,
            len(deep) * len(p["depth_lambdas"]),
            deep,
            **_own(p) | {"tokens": p["depth_tokens"]},
            loss=True,
        ),
    ]


GROUPS = {
    "02_train_sae": train_sae,
    "03_train_gated": train_gated,
    "04_resampling": resampling,
    "05_layer_analysis": layer_analysis,
}
