"""The plain SAE along all depths: what is said where an L0 is reached never, once, everywhere."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import PowerLaws
from helpers.f3_cases import COMPARED, SCOPE, params

from saelib.config import CollectConfig, CorpusConfig
from saelib.study import f3_depth
from saelib.study.curve import Curve
from saelib.study.f3_depth import DELTA_CE, EFFECTIVE_RANK, LOSS, NORM, OFFSET, SINK_SHARE, Depths


def pages(run):
    """Sums by page of an SAE whose FVU is in its name."""
    return pd.DataFrame({"page_id": list("abcde"), "sse": float(run), "sst": 1.0, "ce_n": 0})


def depths(fvu, delta_ce=0.2):
    """Sites 0, 9, 18 … of these FVU at L0 32; nan is not reached."""
    sites = [9 * i for i in range(len(fvu))]
    table = pd.DataFrame(
        {
            NORM: np.linspace(3.0, 700.0, len(fvu)),
            SINK_SHARE: 0.0,
            OFFSET: np.linspace(0.3, 1.0, len(fvu)),
            EFFECTIVE_RANK: 40.0,
            "FVU at L0 = 32": fvu,
            LOSS: 0.9,
            DELTA_CE: delta_ce,
            "PCA of rank 32": 0.5,
        },
        index=pd.Index(sites, name="site"),
    )
    curves = {}
    for site, value in zip(sites, fvu, strict=True):
        l0 = [64.0, 16.0] if np.isfinite(value) else [64.0, 48.0]
        rows = {"run_id": [str(value), str(value)], "lambda": [1.0, 2.0], "l0_val": l0}
        rows |= {"loss_recovered_mean": [np.nan, np.nan]}
        curves[site] = Curve(pd.DataFrame(rows), pages)
    return Depths(table, curves, 32.0, 320)


@pytest.mark.parametrize(
    ("fvu", "words"),
    [
        ([0.2, 0.3, 0.4], "least at site 0, most at site 18"),
        ([np.nan, 0.3, np.nan], "reached at site 9 alone"),
        ([np.nan, np.nan, np.nan], "reached at no site"),
    ],
)
def test_the_title_names_the_easiest_and_the_hardest_site(fvu, words):
    result = depths(fvu)
    assert words in f3_depth.title(result)
    assert len(f3_depth.title(result).split()) <= 12
    assert f3_depth.figure(result, SCOPE).get_suptitle()


def test_the_caption_names_what_goes_along_with_fvu():
    # norm, offset and depth rise with it: no single one goes with it most
    assert (
        "FVU goes most with median norm (+1.00), mean offset (+1.00) and depth (+1.00) alike"
        in f3_depth.correlate_words(depths([0.2, 0.3, 0.4]))
    )
    unequal = depths([0.2, 0.3, 0.4])
    unequal.table[NORM] = [3.0, 3.0, 700.0]
    unequal.table[OFFSET] = [0.3, 0.2, 0.4]
    assert "FVU goes most with depth (+1.00), by" in f3_depth.correlate_words(unequal)
    assert "Too few sites" in f3_depth.correlate_words(depths([np.nan, np.nan, np.nan]))


def test_undefined_losses_leave_the_checks_standing():
    lines = f3_depth.checks(depths([0.2, 0.3, np.nan]))
    assert lines[0] == "L0 = 32 is reached at 2 of 3 sites"
    assert lines[2].endswith("at 0 of 0 (undefined at 2)")


def test_the_table_shown_has_at_most_twelve_rows():
    table = f3_depth.text_table(depths(list(np.linspace(0.2, 0.5, 31))))
    assert len(table) == 12
    assert table.iloc[-1].name == "Spearman's ρ"
    assert table.iloc[-1]["median norm"] == "+1.00"


def test_compared_sites_are_among_the_depths():
    assert f3_depth.depth_sites(30, 9, COMPARED) == [0, 2, 9, 15, 18, 27, 29]
    assert f3_depth.depth_sites(30, 10, COMPARED) == [0, 2, 10, 15, 20, 29, 30]
    assert f3_depth.depth_sites(29, 10, COMPARED) == [0, 2, 10, 15, 20, 29]  # 29 is the last


def test_what_is_drawn_has_intervals_for_fvu_alone():
    panels = f3_depth.panel_table(depths([0.2, 0.3, 0.4]))
    drawn = panels.dropna(subset="lo")
    assert set(drawn["panel"]) == {"FVU at L0 = 32"}
    assert set(drawn["series"]) == {"plain"}


def test_the_figure_keeps_gamma_for_shrinkage_and_the_file_its_column():
    result = depths([0.2, 0.3, 0.4])
    assert f3_depth.OFFSET in result.table
    assert not any("γ" in panel for panel in f3_depth.panel_table(result)["panel"])


def test_each_depth_is_trained_until_its_curve_holds_the_l0():
    ws = PowerLaws({"plain": 400.0})
    p = params(depth_lambdas=[2.0, 5.0], l0_target=32.0, seeds=[3, 4])
    curves = f3_depth.train(ws, p, [0, 9, 29])
    assert list(curves) == [0, 9, 29]
    for site, curve in curves.items():
        assert set(curve.rows["site"]) == {site}
        assert {2.0, 5.0} < set(curve.rows["lambda"])  # L0 200 and 80: a further λ was needed
        assert curve.at_l0(32.0) == pytest.approx(ws.shares["plain"] * 12.5**0.2 * 1.03, rel=1e-2)
    kinds = {(spec.train.seed, spec.train.tokens, spec.arm) for spec in ws.trained.values()}
    assert kinds == {(3, 320, "plain")}


def test_fewer_contexts_of_the_notebook_s_own_text_are_collected_at_the_depths():
    asked = []
    ws = SimpleNamespace(collect=lambda *given: asked.append(given) or "a store")
    text = CorpusConfig(source="embedded", ctx_len=32, contexts_per_page=9)
    identity = {"model": "a model", "corpus": text.to_dict(), "dtype": "float32"}
    store = f3_depth.collect(ws, identity, params(depth_contexts=2), (0, 9, 29))
    assert store == "a store"
    ((model, corpus, sites, how, dtype),) = asked
    assert (model, sites, dtype) == ("a model", [0, 9, 29], "float32")
    assert corpus == replace(text, contexts_per_page=2)
    assert how == CollectConfig()
    assert identity["corpus"]["contexts_per_page"] == 9
