"""F3d and F3e: of the error that remains, how much is the encoder's and how much the dictionary's?

The original post asks for the right items (the decoder's rows) and the right selection of them (the
encoder). Here the dictionary is held fixed and the codes are chosen anew without an encoder; then
the codes' method is held fixed and the dictionary changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from saelib.measure.dictionary import code_errors
from saelib.measure.geometry import naive_predictors
from saelib.sae.spec import Spec
from saelib.show import compare
from saelib.study.curve import Curve
from saelib.study.estimate import Estimate, over_seeds, ratio_of_pages
from saelib.study.f3_shuffled import ordinary_rows
from saelib.study.f3_sites import NOTEBOOK, Compared, without_loss
from saelib.study.finding import Verdict, enough
from saelib.study.matched import three_digits
from saelib.study.notebooks import LayerParams
from saelib.study.scope import Scope

CLAIM_D = "No suitable dictionary can be found at site {deep}."
CLAIM_E = "At site {deep} pursuit improves on the encoder's codes more than at {shallow}."
RULE_D = (
    "Supported if at the deepest site pursuit leaves more than PCA of that rank with each "
    "dictionary tried (the SAE's, one trained longer, a wider one, one learned by pursuit), by "
    "95 % intervals; contradicted if with one of them it leaves less. Undecided otherwise, where "
    "the L0 is not reached, and with fewer than 15 test pages or three seeds."
)
RULE_E = (
    "Supported if the share of the error that pursuit removes is larger at the deepest site than "
    "at each shallower one by more than {margin:g} (whole 95 % interval); contradicted if one such "
    "difference lies below {margin:g}. Undecided otherwise, where an L0 is not reached, and with "
    "fewer than 15 test pages or three seeds."
)
PCA = "PCA of rank L0"
SHUFFLED = "SAE on shuffled dimensions"
OTHER_CODES = ("encoder", "refitted", "lasso", "pursuit")
BASELINES = ("random items", PCA, SHUFFLED)
LABELS = {  # codes in the table -> in the figure
    "encoder": "encoder: the SAE itself",
    "refitted": "refitted magnitudes",
    "lasso": "lasso at equal ‖f‖₁",
    "pursuit": "pursuit",
    "learned items": "dictionary learned by pursuit",
    "random items": "random directions",
    SHUFFLED: "SAE, shuffled dimensions",
}


def label(codes: str) -> str:
    """A choice of codes or dictionary as figures and tables for readers name it."""
    return LABELS.get(codes, codes.replace("items", "latents"))


# What is trained


def longer_name(p: LayerParams) -> str:
    """The dictionary trained longer, as tables name it."""
    return f"trained {p.longer:g} × longer"


def wider_name(p: LayerParams) -> str:
    """The wider dictionary, as tables name it."""
    return f"{p.wider:g} × as many items"


class Trained(NamedTuple):
    """SAEs whose codes are searched, and larger ones, by site with one spec a seed."""

    split: dict[int, list[Spec]]
    larger: dict[tuple[int, str], list[Spec]]
    rows: pd.DataFrame  # results of `split`


def lambdas_at_l0(p: LayerParams, plain: Mapping[tuple[int, int], Curve]) -> dict[int, float]:
    """λ at which the plain SAE has L0 = `l0_target`, mean over seeds, three digits, by site.

    plain: curves by (site, seed). Sites that do not reach the L0 with each seed are left out.
    """
    lambdas = {}
    for site in sorted({site for site, _ in plain}):
        per_seed = [
            curve.at_l0(p.l0_target, "lambda") for (s, _), curve in plain.items() if s == site
        ]
        if None not in per_seed:
            lambdas[site] = three_digits(np.mean(per_seed))
    return lambdas


def train(ws: Any, p: LayerParams, plain: Mapping[tuple[int, int], Curve]) -> Trained:
    """Train the plain SAE at L0 = `l0_target` of each site, and longer and wider ones at its λ."""
    larger_fields = {
        longer_name(p): {"tokens": round(p.longer * p.tokens / p.batch_size) * p.batch_size},
        wider_name(p): {"n_latents": round(p.wider * p.n_latents)},
    }
    lambdas = lambdas_at_l0(p, plain)
    split = {site: _specs(ws, p, site, lam) for site, lam in lambdas.items()}
    larger = {
        (site, name): _specs(ws, p, site, lam, fields)
        for (site, lam), (name, fields) in product(lambdas.items(), larger_fields.items())
    }
    rows = ws.train([spec for specs in split.values() for spec in specs], NOTEBOOK)
    without_loss(ws).train([spec for specs in larger.values() for spec in specs], NOTEBOOK)
    return Trained(split, larger, rows)


def _specs(
    ws: Any, p: LayerParams, site: int, lam: float, fields: Mapping[str, Any] | None = None
) -> list[Spec]:
    values = p.spec_fields() | dict(fields or {})
    return [ws.spec("plain", site, lam=lam, seed=seed, **values) for seed in p.split_seeds]


# Other codes, other dictionaries


@dataclass(frozen=True)
class Errors:
    """FVU under each choice of codes and dictionary by (site, codes), a value for each seed.

    shuffled: FVU by site of SAEs without structure between dimensions, None where not reached.
    """

    by_seed: Mapping[tuple[int, str], Sequence[Estimate]]
    compared: Compared
    shuffled: Mapping[int, float | None]

    @property
    def sites(self) -> list[int]:
        """Sites whose SAEs reach the L0."""
        return list(dict.fromkeys(site for site, _ in self.by_seed))

    def fvu(self, site: int, codes: str) -> Estimate:
        """FVU over seeds."""
        return over_seeds(list(self.by_seed[site, codes]))

    def removed(self, site: int) -> Estimate:
        """Share of the encoder's error that pursuit removes, with the dictionary held fixed."""
        return 1 - self.fvu(site, "pursuit") / self.fvu(site, "encoder")

    def removed_by_site(self) -> dict[int, Estimate]:
        """`removed` of all sites."""
        return {site: self.removed(site) for site in self.sites}

    def factors(self) -> dict[str, Estimate]:
        """The ratio of the two deepest sites' FVU, and its factors dictionary and encoder.

        Empty where one of the sites does not reach the L0.
        """
        near, deep = self.compared.pair
        if not {near, deep} <= set(self.sites):
            return {}
        ratio = self.fvu(deep, "encoder") / self.fvu(near, "encoder")
        dictionary = self.fvu(deep, "pursuit") / self.fvu(near, "pursuit")
        lost = {s: self.fvu(s, "encoder") / self.fvu(s, "pursuit") for s in (deep, near)}
        return {"FVU": ratio, "dictionary": dictionary, "encoder": lost[deep] / lost[near]}

    def table(self) -> pd.DataFrame:
        """site, codes, value, lo, hi."""
        rows = [
            {"site": site, "codes": codes, **self.fvu(site, codes).row()}
            for site, codes in self.by_seed
        ]
        baselines = [
            {"site": site, "codes": SHUFFLED, "value": self.shuffled.get(site)}
            for site in self.compared.sites
        ]
        table = pd.DataFrame(rows, columns=["site", "codes", "value", "lo", "hi"])
        last = pd.DataFrame(baselines).astype({"value": float})
        return pd.concat([table, last]) if len(table) else last.assign(lo=np.nan, hi=np.nan)

    def text_table(self) -> pd.DataFrame:
        """FVU as text, one row a choice of codes or dictionary, one column a site."""
        table = self.table()
        order = list(dict.fromkeys(table["codes"]))
        texts = table.assign(value=[_text(row) for row in table.itertuples()])
        pivot = texts.pivot(index="codes", columns="site", values="value").reindex(order)
        return pivot.rename(index=label).fillna("not reached")

    def seed_table(self) -> pd.DataFrame:
        """Values of single seeds: group, hue, value."""
        rows = [
            (codes, site, estimate.value)
            for (site, codes), per_seed in self.by_seed.items()
            for estimate in per_seed
        ]
        return pd.DataFrame(rows, columns=["group", "hue", "value"])


def _text(row: Any) -> str:
    if np.isnan(row.value):
        return "not reached"
    if np.isnan(row.lo):
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.lo:.3f}, {row.hi:.3f}]"


def measure_errors(
    ws: Any,
    p: LayerParams,
    trained: Trained,
    compared: Compared,
    shuffled: Mapping[int, float | None],
) -> Errors:
    """FVU of each site's SAEs under other codes and dictionaries, by page and seed."""
    by_seed: dict[tuple[int, str], list[Estimate]] = {}
    for site, specs in trained.split.items():
        for i, spec in enumerate(specs):
            larger = {
                name: ws.load(group[i]) for (s, name), group in trained.larger.items() if s == site
            }
            for codes, estimate in _errors_of(ws.store, p, ws.load(spec), larger).items():
                by_seed.setdefault((site, codes), []).append(estimate)
    return Errors(by_seed, compared, shuffled)


def _errors_of(
    store: Any, p: LayerParams, sae: Any, larger: Mapping[str, Any]
) -> dict[str, Estimate]:
    """FVU of one SAE's test rows under each choice of codes and dictionary."""
    site = sae.config.site
    x, page = ordinary_rows(store, site, "test", p.split_tokens)
    train_rows = ordinary_rows(store, site, "train", p.learn_tokens)[0]
    errors = code_errors(sae, x, train_rows, larger)
    rank = round(float((sae.encode_raw(x) > 0).sum(1).float().mean()))
    project = naive_predictors(store, site, rank)["pca"]
    rest = x - project(x.double(), torch.zeros(len(x), 1))
    errors[PCA] = rest.square().sum(-1).numpy()
    sst = (x - x.mean(0)).double().square().sum(-1).numpy()
    sums = pd.DataFrame(errors | {"sst": sst, "page": page}).groupby("page").sum()
    return {codes: ratio_of_pages(sums[codes], sums["sst"]) for codes in errors}


# Figure and checks


def title(errors: Errors) -> str:
    """At which site better codes over the same dictionary help most or least."""
    deep = errors.compared.deep
    removed = errors.removed_by_site()
    if deep not in removed or len(removed) < 2:
        return "L0 is not reached at enough sites to compare codes"
    others = [removed[deep] - share for site, share in removed.items() if site != deep]
    words = {difference.compare(0) for difference in others}
    if words == {"lower"}:
        return f"Better codes remove less of the error at site {deep} than elsewhere"
    if words == {"higher"}:
        return f"Better codes remove more of the error at site {deep} than elsewhere"
    return "How much better codes help does not follow depth"


def removed_words(errors: Errors) -> str:
    """ "47.8% [44.5%, 50.3%] at site 2, …", or that no site reaches the L0."""
    texts = [f"{x.text('.1%')} at site {site}" for site, x in errors.removed_by_site().items()]
    return ", ".join(texts) or "L0 is reached at no site"


def scope_words(p: LayerParams, scope: Scope) -> str:
    """Seeds, test tokens and pages of the search for codes."""
    return f"{scope.trainings}, {p.split_tokens:,} ordinary test tokens of {scope.n_pages} pages"


def _block(codes: str) -> str:
    """The group of rows in the figure that a choice of codes or dictionary belongs to."""
    if codes in OTHER_CODES:
        return "the SAE's dictionary, other codes"
    return "baselines" if codes in BASELINES else "pursuit, other dictionaries"


def figure(errors: Errors, p: LayerParams, scope: Scope, n_layers: int | None = None) -> Figure:
    """FVU under each choice of codes and dictionary, one colour a site."""
    table = errors.table()
    rows = table.assign(
        group=table["codes"].map(label),
        hue=table["site"],
        block=table["codes"].map(_block),
        note=np.where(table["value"].isna(), "not reached", ""),
    )
    note = (
        f"Share of the encoder's error that pursuit removes: {removed_words(errors)}. Plain SAE "
        f"near L0 = {p.l0_target:g}, {scope_words(p, scope)}. {_drawn_words(rows, p)}"
        f"{scope.model}."
    )
    seeds = errors.seed_table()
    return compare.interval_points(
        rows,
        seeds.assign(group=seeds["group"].map(label)) if scope.n_seeds > 1 else None,
        title=title(errors),
        interval=scope.interval,
        note=note,
        value_label="FVU",
        reference=(1, "mean predictor"),
        n_layers=n_layers,
    )


def _drawn_words(rows: pd.DataFrame, p: LayerParams) -> str:
    """What is to be known of the rows that are drawn."""
    drawn = set(rows.loc[rows["value"].notna(), "codes"])
    words = ""
    if "learned items" in drawn:
        words += f"One dictionary is learned by pursuit on {p.learn_tokens:,} training tokens. "
    if SHUFFLED in drawn:
        words += "The last row is one seed without interval. "
    return words


def checks(errors: Errors) -> list[str]:
    """Do better codes help, was a dictionary learned, and is there structure to learn?"""
    values = {
        site: {codes: errors.fvu(site, codes).value for s, codes in errors.by_seed if s == site}
        for site in errors.sites
    }
    better = _count(values, lambda x: x["pursuit"] < 0.95 * x["encoder"])
    learned = _count(values, lambda x: x["pursuit"] < 0.8 * x["random items"])
    magnitudes = _count(values, lambda x: x["refitted"] < x["encoder"])
    reached = [site for site in errors.sites if errors.shuffled[site]]
    structured = [s for s in reached if values[s]["encoder"] < 0.9 * errors.shuffled[s]]
    return [
        f"pursuit beats the encoder by over 5 % at {better} of {len(values)} sites",
        "random directions leave over 1.25 times as much under the same pursuit at "
        f"{learned} of {len(values)}",
        f"better magnitudes alone help at {magnitudes} of {len(values)}",
        "without structure between dimensions over 1.1 times as much is left at "
        f"{len(structured)} of {len(reached)}",
    ]


def _count(values: Mapping[int, Mapping[str, float]], holds: Callable[..., bool]) -> int:
    return sum(bool(holds(of_site)) for of_site in values.values())


def factor_words(errors: Errors) -> str:
    """The gap's two factors in words."""
    texts = [f"{name} {x.text('.2f')}" for name, x in errors.factors().items()]
    return ", ".join(texts) or "L0 not reached"


# Verdicts


def decide_dictionary(over_pca: Iterable[Estimate], n_seeds: int, n_pages: int) -> Verdict:
    """Is there no suitable dictionary at the deepest site?

    over_pca: FVU of pursuit with each dictionary tried, over that of PCA of the same rank; empty
    where the L0 is not reached.
    """
    words = {ratio.compare(1) for ratio in over_pca}
    if not enough(n_seeds, n_pages):
        return "undecided"
    if "lower" in words:
        return "contradicted"
    return "supported" if words == {"higher"} else "undecided"


def decide_encoder(
    differences: Iterable[Estimate], margin: float, n_seeds: int, n_pages: int
) -> Verdict:
    """Does the encoder lose more at the deepest site than at each shallower one?

    differences: the share of the error that pursuit removes at the deepest site, less that at each
    shallower one; empty where an L0 is not reached.
    """
    words = {difference.compare(margin) for difference in differences}
    if not enough(n_seeds, n_pages):
        return "undecided"
    if words == {"higher"}:
        return "supported"
    return "contradicted" if "lower" in words else "undecided"


def over_pca(errors: Errors, p: LayerParams) -> list[Estimate]:
    """At the deepest site, FVU of pursuit with each dictionary tried over that of PCA."""
    deep = errors.compared.deep
    if deep not in errors.sites:
        return []
    kinds = ["pursuit", "learned items", longer_name(p), wider_name(p)]
    return [errors.fvu(deep, kind) / errors.fvu(deep, PCA) for kind in kinds]


def removed_differences(errors: Errors) -> list[Estimate]:
    """Share removed at the deepest site less each shallower one's; empty if one is missing."""
    if set(errors.sites) != set(errors.compared.sites):
        return []
    deep = errors.removed(errors.compared.deep)
    return [deep - errors.removed(site) for site in errors.compared.shallow]


def sentence_dictionary(errors: Errors, p: LayerParams, scope: Scope) -> str:
    """What pursuit leaves at each site, beside PCA."""
    texts = []
    for site in errors.sites:
        pca = errors.fvu(site, PCA).value
        texts.append(f"site {site} {errors.fvu(site, 'pursuit').text('.3f')}, PCA {pca:.3f}")
    return (
        f"FVU of pursuit over the plain SAE's dictionary near L0 = {p.l0_target:g}: "
        f"{'; '.join(texts) or 'L0 not reached'}; {scope_words(p, scope)}."
    )


def sentence_encoder(errors: Errors, p: LayerParams, scope: Scope) -> str:
    """What share of the error pursuit removes at each site."""
    return (
        f"Share of the error that pursuit removes: {removed_words(errors)}; "
        f"{scope_words(p, scope)}. Pursuit is greedy: each share is a lower bound of the "
        f"encoder's, and a difference of two is no bound. Site {errors.compared.deep} over site "
        f"{errors.compared.near}: {factor_words(errors)} (FVU = dictionary × encoder, under "
        "pursuit)."
    )
