"""F5 in tables and words: where curves begin, points with intervals, what is read at one L0."""

import numpy as np
import pandas as pd
import pytest
from helpers.f2_cases import EQUAL, UNREACHED, WORSE, PowerLaws, estimate, params
from helpers.f5_cases import matched_of, runs_of

from saelib.study import f5_architectures as f5
from saelib.study.estimate import of_pages, over_seeds


def test_the_settings_at_which_curves_begin_are_a_table_by_architecture():
    p = params(
        "07_architectures",
        l0_targets=[0.3, 16.4, 31.6],
        lambdas=[1.0, 2.0],
        lam_full=1.6,
        lambdas_p_anneal=[1.5],
        lambdas_jumprelu=[2.5, 6.0],
        lambdas_tanh=[0.123456],
    )
    table = f5.starts_table(p)
    assert table.index.name == "architecture"
    assert list(table.itertuples(name=None)) == [
        ("plain", "λ", "1, 2"),
        ("p-annealed", "λ", "1.5"),
        ("Gated", "λ", "1.6, 3.2"),
        ("JumpReLU", "λ", "2.5, 6"),
        ("JumpReLU (tanh)", "λ", "0.123"),
        ("TopK", "k", "1, 16, 32"),
        ("BatchTopK", "k", "1, 16, 32"),
        ("Matryoshka", "k", "1, 16, 32"),
    ]


# -- curves


def columns(arm, site, runs, **more):
    """Rows of one curve; its runs are named."""
    n = len(runs)
    return {"arm": [arm] * n, "site": [site] * n, "run_id": runs, "n_test_pages": [22] * n} | more


@pytest.fixture
def runs():
    """BatchTopK at two k, of which the second seed has one, and the plain SAE at one λ."""
    topk = {"lambda": [0.0, 0.0], "knob": [32.0, 16.0]}
    return runs_of(
        {
            ("batchtopk", 2, 0): columns("batchtopk", 2, ["a", "b"], **topk),
            ("batchtopk", 2, 1): columns(
                "batchtopk", 2, ["c"], **{"lambda": [0.0], "knob": [32.0]}
            ),
            ("plain", 2, 0): columns("plain", 2, ["d"], **{"lambda": [3.0]}),
            ("plain", 2, 1): columns("plain", 2, ["e"], **{"lambda": [3.0]}),
        },
        sites=[2],
    )


class Measured:
    """Sums by page of five runs, FVU 0.1 to 0.5 on the whole."""

    def pages(self, run):
        rng = np.random.default_rng(ord(run))
        sst = rng.uniform(10, 20, 30)
        sse = sst * rng.uniform(0.5, 1.5, 30) * (0.1 + 0.1 * "abcde".index(run))
        return pd.DataFrame({"sse": sse, "sst": sst})


def test_the_fewest_test_pages_count(runs):
    assert runs.n_pages == 22
    runs.curves["batchtopk", 2, 1].rows["n_test_pages"] = 14
    assert runs.n_pages == 14


def test_points_have_the_interval_of_the_seeds_that_share_a_setting(runs):
    ws = Measured()
    points = f5.curve_points(ws, runs)
    found = [(row.arm, row["lambda"], row.run_id) for _, row in points.iterrows()]
    assert found == [
        ("plain", 3.0, "d"),
        ("plain", 3.0, "e"),
        ("batchtopk", 16.0, "b"),
        ("batchtopk", 32.0, "a"),
        ("batchtopk", 32.0, "c"),
    ]
    both = {
        run: over_seeds([of_pages(ws.pages(one)) for one in pair])
        for run, pair in {"a": "ac", "c": "ac", "d": "de", "e": "de"}.items()
    }
    for _, point in points.iterrows():
        if point.run_id == "b":  # the second seed lacks k = 16
            assert np.isnan([point.lo, point.hi]).all()
        else:
            assert (point.lo, point.hi) == (both[point.run_id].lo, both[point.run_id].hi)


# -- at one L0


def means_of(**changed):
    """Means over seeds of every architecture at site 2; of TopK these are changed."""
    usual = {"loss_recovered": 0.9, "delta_ce": 0.25, "kl": 0.2, "shrinkage": 0.95}
    usual |= {"dead_fraction": 0.125} | {f"{name}_pm": 0.01 for name in f5.MEANS}
    cells = [(arm, 2, 32.0) for arm in f5.ARMS]
    index = pd.MultiIndex.from_tuples(cells, names=["arm", "site", "l0"])
    rows = [usual | changed if arm == "topk" else usual for arm, _, _ in cells]
    return pd.DataFrame(rows, index=index, dtype=float)


def test_a_reader_sees_means_with_their_intervals_and_what_has_none():
    matched = matched_of({("topk", 2): estimate(0.4, 0.35, 0.45), ("full", 2): UNREACHED}, [2])
    means = means_of(
        delta_ce=0.0314, delta_ce_pm=0.0042, dead_fraction=0.0312, dead_fraction_pm=0.004,
        kl=np.nan, kl_pm=np.nan, shrinkage=0.9, shrinkage_pm=np.nan,
    )  # fmt: skip
    recovered = dict.fromkeys(matched.log_fvu, UNREACHED) | {("topk", 2, 32.0): EQUAL}
    table = f5.matched_table(matched._replace(means=means, recovered=recovered), 32.0)
    assert list(table.index) == [(2, f5.NAMES[arm]) for arm in f5.ARMS]
    assert table.loc[(2, "TopK")].to_dict() == {
        "FVU": "0.400 [0.350, 0.450]",
        "loss recovered": "1.000 [0.990, 1.010]",
        "ΔCE (nats)": "0.031 ± 0.004",
        "KL (nats)": "undefined",
        "dead (%)": "3.1 ± 0.4",
        "shrinkage": "0.900",  # one seed
    }
    assert table.loc[(2, "Gated"), "FVU"] == "unreachable"
    assert table.loc[(2, "Gated"), "loss recovered"] == "undefined"
    assert table.loc[(2, "plain"), "dead (%)"] == "12.5 ± 1.0"


def test_only_what_has_a_value_is_kept():
    assert f5.defined([WORSE, UNREACHED, EQUAL]) == [WORSE, EQUAL]
    assert f5.defined([UNREACHED]) == []


def test_the_description_says_sites_l0_seeds_and_both_learning_rates():
    p = params(
        "07_architectures", sites=[-2, 2], seeds=[0, 1], l0_targets=[16.0, 32.5], lr=1e-3,
        lr_topk=5e-4, n_latents=768, tokens=40960, batch_size=256,
    )  # fmt: skip
    first, recipe = f5.describe(PowerLaws(), p).split("\n")
    assert first == "tiny-llama: sites 2, 29; L0 16, 32.5; 2 seeds"
    assert recipe.startswith("recipe: n_latents 768, tokens 40960, batch_size 256, lr 0.001, ")
    assert recipe.endswith(", lr_topk 0.0005")
