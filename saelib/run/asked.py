"""What the notebooks would train, as groups of like SAEs: the studies run on a dry workspace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from saelib.config import EvalConfig
from saelib.env import data_dir
from saelib.run.dry import Asked, DryWorkspace, Ledger
from saelib.run.recorded import RecordedRuns
from saelib.run.trained import Trained
from saelib.sae.spec import Spec
from saelib.study.notebooks import PARAMETERS
from saelib.study.trainings import train_all

CAUSES = "05_layer_analysis"
# These two kinds are in no table of results: the SAEs of all depths have a folder of their own, and
# those on shuffled dimensions are not kept.
DEEP = "all depths"
NOISE = "shuffled dimensions"
RAW_RISING = 3.0  # the original recipe's L0 stays in the hundreds: nearly all steps are dense

Parameters = Mapping[str, Any]


class Group(NamedTuple):
    """Like SAEs that a notebook trains and measures."""

    what: str
    count: int
    sites: tuple[int, ...]  # spread evenly over them
    tokens: int  # training tokens of each; 0: measured again, not trained
    batch: int
    latents: int
    rising: float | int  # share of the steps in which λ rises
    gated: bool = False
    loss: bool = False  # next-token loss is measured too
    references: int = 0  # sites whose reference losses are measured first here


class Counts(NamedTuple):
    """What one notebook asks for."""

    groups: list[Group]
    there: int  # SAEs among what it asks for that are trained already


def counts_of(
    profile: str, values: Mapping[str, Parameters], n_layers: int, d_model: int
) -> dict[str, Counts]:
    """What each notebook of a profile would train and measure; nothing without all of them.

    values: the parameters of every notebook.
    """
    if not set(PARAMETERS) <= set(values):
        return {}
    ledger, deep = ask_all(profile, values, n_layers, d_model)
    trained = trained_on_disk(profile)
    counts = {}
    for notebook in PARAMETERS:
        asked = [each for each in ledger.trained.values() if each.notebook == notebook]
        left = [each for each in asked if not trained(each.spec)]
        again = [each for each in ledger.again if each.notebook == notebook]
        groups = grouped(notebook, left, again)
        groups = _with_references(groups, list(ledger.references.values()).count(notebook))
        counts[notebook] = Counts(groups, len(asked) - len(left))
    p = values[CAUSES]
    counts[CAUSES].groups.append(_noise_group(p, ledger))
    counts[CAUSES].groups.extend(_deep_groups(deep))
    return counts


def ask_all(
    profile: str, values: Mapping[str, Parameters], n_layers: int, d_model: int
) -> tuple[Ledger, Ledger]:
    """What the studies ask of a workspace, and of that of all depths."""
    params = {name: model.read(values[name], name) for name, model in PARAMETERS.items()}
    recorded = recorded_runs(profile)
    ws, deep = (DryWorkspace(profile, n_layers, d_model, recorded) for _ in range(2))
    deep = deep.measuring(EvalConfig(ce_tokens=values[CAUSES]["ce_tokens"]))
    train_all(ws, deep, params)
    return ws.ledger, deep.ledger


def recorded_runs(profile: str) -> RecordedRuns:
    """Results of the profile so far, and then those recorded of an earlier run of it."""
    folders = (data_dir(profile), data_dir("recorded") / profile)
    return RecordedRuns.read(*(folder / "results.csv" for folder in folders))


def trained_on_disk(profile: str) -> Callable[[Spec], bool]:
    """Whether an SAE lies in the profile's folder, trained on its store."""
    folder = data_dir(profile)
    if not all((folder / name).is_file() for name in ("workspace.json", "store/manifest.json")):
        return lambda spec: False
    ws = Trained(profile)
    return lambda spec: ws.run(spec).is_trained


def grouped(what: str, left: Iterable[Asked], again: Iterable[Asked]) -> list[Group]:
    """Groups of SAEs of one size; those of `again` are measured and not trained."""
    sites: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for asked, is_trained in [*((a, True) for a in left), *((a, False) for a in again)]:
        sites[_size(asked, is_trained)].append(asked.spec.sae.site)
    return [
        Group(what, len(places), tuple(sorted(set(places))), *size)
        for size, places in sites.items()
    ]


def _size(asked: Asked, is_trained: bool) -> tuple[Any, ...]:
    """Tokens, batch, latents, share of rising λ, gated, loss: what two like SAEs have in common."""
    sae, cfg = asked.spec
    tokens = cfg.steps * cfg.batch_size if is_trained else 0
    rising = RAW_RISING if sae.normalize == "none" else cfg.lam_warmup
    return tokens, cfg.batch_size, sae.n_latents, rising, sae.arch == "gated", asked.loss


def _with_references(groups: list[Group], references: int) -> list[Group]:
    """The first group whose loss is measured takes the sites' reference losses too."""
    for i, group in enumerate(groups):
        if group.loss:
            return [*groups[:i], group._replace(references=references), *groups[i + 1 :]]
    return groups


def _noise_group(p: Parameters, ledger: Ledger) -> Group:
    """SAEs on rows with shuffled dimensions: the given λ, and one more at each site on average."""
    sites = tuple(sorted(ledger.references))
    count = len(p["sites"]) * (len(p["shuffled_lambdas"]) + 1)
    tokens = p["tokens"] // p["batch_size"] * p["batch_size"]
    return Group(NOISE, count, sites, tokens, p["batch_size"], p["n_latents"], p["lam_warmup"])


def _deep_groups(ledger: Ledger) -> list[Group]:
    groups = grouped(DEEP, ledger.trained.values(), ledger.again)
    return _with_references(groups, len(ledger.references))
