"""Figures, titles and captions of `f5_architectures` and `f5_items`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saelib.show import compare, depth, tradeoff
from saelib.study.estimate import Estimate
from saelib.study.f5_architectures import (
    ARMS,
    NAMES,
    Cell,
    Matched,
    gaps,
    leaders,
    matched_rows,
    middle_gaps,
    seed_ratios,
)
from saelib.study.f5_items import CODES, Items
from saelib.study.scope import Scope, interval_words

CODE_WORDS = {"encoder": "its encoder", "pursuit": "pursuit, same dictionary"}


def trade_off(points: pd.DataFrame, matched: Matched, scope: Scope) -> Figure:
    """FVU against L0, a curve per architecture; points: `curve_points`."""
    return tradeoff.trade_off(
        points,
        title=least_title(matched),
        interval=scope.interval,
        note=f"{missing_words(matched)}Ordinary tokens of test pages. {scope.note}",
    )


def least_title(matched: Matched) -> str:
    """Which architecture leaves least at the middle L0 on test pages, or which two."""
    l0 = matched.middle_l0
    names = [NAMES[arm] for arm in leaders(matched)]
    if not names:
        return f"No architecture has L0 = {l0:g} at every site"
    leave = "leaves" if len(names) == 1 else "leave"
    return f"At L0 = {l0:g} {' and '.join(names)} {leave} the least unexplained"


def missing_words(matched: Matched) -> str:
    """How many cells are missing, for a caption."""
    missing = len(matched.unreachable)
    return f"{missing} of {len(matched.cells)} cells are not reached. " if missing else ""


def ratio(ratios: Mapping[Cell, Estimate], matched: Matched, margin: float, scope: Scope) -> Figure:
    """FVU over the plain SAE's at equal L0: a line per architecture, a panel per site."""
    rows = [
        {"group": arm, "hue": f"L0 {l0:g}", "panel": f"site {site}"}
        | x.row()
        | {"note": "" if x.defined else "not reached"}
        for (arm, site, l0), x in ratios.items()
    ]
    seeds = seed_ratios(matched)
    small = pd.DataFrame(
        {
            "group": seeds["arm"],
            "hue": [f"L0 {l0:g}" for l0 in seeds["l0"]],
            "panel": [f"site {site}" for site in seeds["site"]],
            "value": seeds["value"],
        }
    )
    return compare.interval_points(
        pd.DataFrame(rows),
        small if scope.n_seeds > 1 else None,
        title=ratio_title(ratios, matched, margin),
        value_label="FVU ÷ plain SAE's FVU",
        interval=scope.matched_interval,
        note=f"Left of the line: less is left than by the plain SAE. {scope.note}",
        log=True,
        reference=(1, "plain SAE"),
    )


def ratio_title(ratios: Mapping[Cell, Estimate], matched: Matched, margin: float) -> str:
    """How many architectures leave less than the plain SAE at the middle L0 at every site."""
    l0 = matched.middle_l0
    if not any(ratios[arm, site, l0].defined for arm in ARMS[1:] for site in matched.sites):
        return f"L0 = {l0:g} is not reached by enough to compare"
    better = [
        arm
        for arm in ARMS[1:]
        if all(ratios[arm, site, l0].compare(1, margin) == "lower" for site in matched.sites)
    ]
    sites = "every site" if len(matched.sites) > 1 else f"site {matched.sites[0]}"
    if not better:
        return f"At L0 = {l0:g} none clearly leaves less than the plain SAE at {sites}"
    count = f"{len(better)} of {len(ARMS) - 1} architectures"
    return f"At L0 = {l0:g} {count} leave less than the plain SAE at {sites}"


def by_site(matched: Matched, scope: Scope) -> Figure:
    """FVU against depth, a line per architecture, a panel per L0."""
    rows = matched_rows(matched)
    return depth.layer_matched(
        rows[["arm", "site", "l0_target", "fvu", "lo", "hi"]],
        title=depth_title(matched),
        interval=scope.matched_interval,
        note=f"{missing_words(matched)}Ordinary tokens of test pages. {scope.note}",
    )


def depth_title(matched: Matched) -> str:
    """Whether all architectures leave more at the deepest site than at the one before it."""
    found = middle_gaps(matched)
    if not found:
        return "One site: nothing is said of depth"
    near, deep = matched.sites[-2:]
    known = [x for x in found.values() if x.defined]
    if not known:
        return f"L0 = {matched.middle_l0:g} is not reached at sites {near} and {deep}"
    worse = sum(x.compare(1) == "higher" for x in known)
    if worse == len(found):
        return f"Every architecture rebuilds site {deep} worse than site {near}"
    return f"{worse} of {len(known)} architectures rebuild site {deep} worse than site {near}"


def gap(matched: Matched, margin: float, scope: Scope) -> Figure:
    """FVU of the deepest site over that of the site before, a line per architecture."""
    rows = [
        {"group": arm, "hue": f"L0 {l0:g}"} | x.row() | {"note": "" if x.defined else "not reached"}
        for (arm, l0), x in gaps(matched).items()
    ]
    if not rows:
        rows = [
            {"group": arm, "hue": "one site", "value": np.nan, "lo": np.nan, "hi": np.nan}
            | {"note": "does not apply: one site"}
            for arm in ARMS
        ]
    return compare.interval_points(
        pd.DataFrame(rows),
        title=gap_title(matched, margin),
        value_label=_gap_label(matched),
        interval=scope.matched_interval,
        note=f"At 1 the two sites would be rebuilt equally well. {scope.note}",
        reference=(1, "no gap"),
    )


def _gap_label(matched: Matched) -> str:
    if len(matched.sites) < 2:
        return "FVU of one site over another's"
    near, deep = matched.sites[-2:]
    return f"FVU of site {deep} ÷ FVU of site {near}"


def gap_title(matched: Matched, margin: float) -> str:
    """Whether an architecture closes the gap between the two deepest sites."""
    found = middle_gaps(matched)
    if not found:
        return "One site has no gap to another"
    known = {arm: x for arm, x in found.items() if x.defined}
    if "plain" not in known or len(known) < 2:
        return f"L0 = {matched.middle_l0:g} is not reached by enough to compare gaps"
    if known["plain"].compare(1, margin) != "higher":
        return "The plain SAE has no clear gap between these sites"
    others = [arm for arm in known if arm != "plain"]
    closing = [arm for arm in others if known[arm].hi < 1 + margin]
    if closing:
        return f"{len(closing)} of {len(others)} architectures close the gap between sites"
    words = {arm: _against_plain(matched, arm) for arm in others}
    narrower = sum(word == "lower" for word in words.values())
    if narrower:
        return (
            f"{narrower} of {len(words)} architectures narrow the gap between sites, none closes it"
        )
    return "No architecture narrows the gap between sites clearly"


def _against_plain(matched: Matched, arm: str) -> str:
    """How an arm's gap compares with the plain SAE's."""
    near, deep = matched.sites[-2:]
    l0 = matched.middle_l0
    own = matched.log_fvu[arm, deep, l0] - matched.log_fvu[arm, near, l0]
    plain = matched.log_fvu["plain", deep, l0] - matched.log_fvu["plain", near, l0]
    return (own - plain).compare(0)


def items(found: Items, l0: float, scope: Scope) -> Figure:
    """FVU under each architecture's encoder and under pursuit over its dictionary."""
    rows = found.rows()
    table = pd.DataFrame(
        {
            "group": rows["arm"],
            "hue": rows["codes"].map(CODE_WORDS),
            "panel": [f"site {site}" for site in rows["site"]],
            "value": rows["value"],
            "lo": rows["lo"],
            "hi": rows["hi"],
            "note": "",
        }
    )
    return compare.interval_points(
        table,
        title=items_title(found),
        value_label="FVU",
        interval=interval_words(found.n_pages, scope.n_seeds),
        note=f"SAEs near L0 = {l0:g}; pursuit takes as many latents a token as the plain encoder. "
        f"{scope.note}",
        share_x=False,
    )


def items_title(found: Items) -> str:
    """Whether architectures differ more in their encoders or in their dictionaries."""
    spreads = {codes: spread(found, codes) for codes in CODES}
    if not np.isfinite(list(spreads.values())).all():
        return "Too few architectures reach the L0 to tell items from selection"
    if spreads["pursuit"] < 0.5 * spreads["encoder"]:
        return "Architectures differ in their encoders more than in their dictionaries"
    if spreads["pursuit"] > spreads["encoder"]:
        return "Architectures differ in their dictionaries more than in FVU"
    return "Architectures differ in dictionaries and in encoders"


def spread(found: Items, codes: str) -> float:
    """Mean over sites of the range of log FVU over architectures; nan with fewer than two."""
    rows = found.rows()
    logs = np.log(rows.loc[rows["codes"] == codes, "value"])
    groups = logs.groupby(rows["site"])
    ranges = groups.max() - groups.min()
    ranges = ranges[groups.size() > 1]
    return float(ranges.mean()) if len(ranges) else float("nan")
