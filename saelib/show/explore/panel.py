"""A panel at the end of a notebook: choose site, architecture and λ, see what a latent fires on.

Live in JupyterLab it is a panel of ipywidgets; headless (`SAELIB_HEADLESS` set, as batch runs do)
it leaves a picture and HTML of the default choice. Contexts come from test pages. Latents are
ranked and shaded on ordinary tokens alone: elsewhere the SAE was not trained, and codes there are
of another size.
"""

from __future__ import annotations

import os
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Image, display
from jaxtyping import Float32, Float64, Int64

from saelib.activations.store import Store
from saelib.measure.columns import PANEL, TITLES
from saelib.sae import load_sae
from saelib.show.style import L0_FLOOR, looks_of, to_png
from saelib.show.tokens import shade, token_pieces
from saelib.show.tradeoff import trade_off

MAX_ROWS = 65_536  # tokens encoded to find contexts; of more, evenly spaced whole contexts
# The panel opens near these: codes neither dense nor empty, latents not rare.
USUAL_L0 = 32
USUAL_DENSITY = 3e-3
CONTEXTS_NOTE = (
    "Its strongest contexts, one per line: shading is the activation relative to the largest, "
    "the strongest token is outlined, grey tokens are not ordinary and left out."
)
METRICS = {name: TITLES[name] for name in PANEL}


class LatentIndex(NamedTuple):
    """Where each latent fires, latent after latent, rows rising within one."""

    rows: Int64[np.ndarray, " fired"]
    values: Float32[np.ndarray, " fired"]
    starts: Int64[np.ndarray, " n_latents_plus_1"]
    n_rows: int  # rows looked at

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows on which a latent fires, and its activations there."""
        if not 0 <= latent < len(self.starts) - 1:
            raise ValueError(f"latent {latent}: expected 0 to {len(self.starts) - 2}")
        part = slice(self.starts[latent], self.starts[latent + 1])
        return self.rows[part], self.values[part]

    @property
    def density(self) -> Float64[np.ndarray, " n_latents"]:
        """Share of the rows on which each latent fires."""
        return np.diff(self.starts) / max(self.n_rows, 1)


def _rows_to_read(store: Store, split: str, limit: int) -> np.ndarray:
    """Ordinary rows of a split; beyond `limit`, those of every n-th context."""
    rows = np.flatnonzero(store.mask("ordinary", split))
    contexts = np.unique(store.tokens["context"][rows])
    kept = contexts[:: max(1, -(-len(rows) // limit))]
    return rows[np.isin(store.tokens["context"][rows], kept)]


@torch.no_grad()
def index_latents(
    sae: Any, store: Store, split: str = "test", limit: int = MAX_ROWS
) -> LatentIndex:
    """Encode the ordinary rows of a split at the SAE's site; ValueError where they do not fit."""
    sae.check_store(store.d_model, store.sites)
    index = _rows_to_read(store, split, limit)
    rows, latents, values = [], [], []
    for part in np.split(
        index, range(2048, len(index), 2048)
    ):  # one empty part where there are no rows
        f = sae.encode_raw(store.rows(sae.config.site, part))  # [batch, n_latents]
        row, latent = f.nonzero(as_tuple=True)
        rows.append(part[row.numpy()])
        latents.append(latent.numpy())
        values.append(f[row, latent].numpy())
    latent = np.concatenate(latents)
    order = np.argsort(latent, kind="stable")
    starts = np.searchsorted(latent[order], np.arange(sae.config.n_latents + 1))
    return LatentIndex(
        np.concatenate(rows)[order], np.concatenate(values)[order], starts, len(index)
    )


def moderate_latents(density: Float64[np.ndarray, " n_latents"], n: int = 24) -> list[int]:
    """The n alive latents with density nearest `USUAL_DENSITY` (in ratio), nearest first."""
    alive = np.flatnonzero(density > 0)
    distance = np.abs(np.log(density[alive] / USUAL_DENSITY))
    return alive[np.argsort(distance, kind="stable")[:n]].tolist()


def top_contexts(
    sae: Any,
    store: Store,
    feature: int,
    k: int = 8,
    split: str = "test",
    width: int = 20,
    index: LatentIndex | None = None,
) -> pd.DataFrame:
    """The k contexts of a split in which a latent fires most, strongest first; each context once.

    activation (the largest), title (of the page), context, position (of the peak in its context),
    token_ids and activations (up to `width` tokens either side of the peak; nan where a token is
    not ordinary), peak (which of these is the strongest). `index` spares the encoding where
    `index_latents` has run. No rows where the latent never fires.
    """
    rows, values = (index or index_latents(sae, store, split)).of(feature)
    strongest = pd.DataFrame(
        {"row": rows, "value": values, "context": store.tokens["context"][rows]}
    )
    strongest = (
        strongest.sort_values("value", ascending=False, kind="stable")
        .drop_duplicates("context")
        .head(k)
    )
    codes, ordinary = (
        dict(zip(rows.tolist(), values.tolist(), strict=True)),
        store.mask("ordinary", split),
    )
    return pd.DataFrame(
        [_window(store, row, codes, ordinary, width) for row in strongest["row"]],
        columns=["activation", "title", "context", "position", "token_ids", "activations", "peak"],
    )


def _window(
    store: Store, row: int, codes: dict[int, float], ordinary: np.ndarray, width: int
) -> dict[str, Any]:
    """The tokens around a row, within its context."""
    context = int(store.tokens["context"][row])
    whole = store.context_rows(context)
    rows = range(max(whole.start, row - width), min(whole.stop, row + width + 1))
    return {
        "activation": codes[row],
        "title": store.page_titles[store.tokens["page"][row]],
        "context": context,
        "position": int(store.tokens["position"][row]),
        "token_ids": store.tokens["token_id"][rows.start : rows.stop].tolist(),
        "activations": [codes.get(r, 0.0) if ordinary[r] else float("nan") for r in rows],
        "peak": row - rows.start,
    }


# HTML


def _token_html(piece: str, activation: float, largest: float, peak: bool) -> str:
    text = escape(piece).replace("\n", "↵\n") or "·"
    if np.isnan(activation):
        return f'<span style="color:#767676" title="not an ordinary token">{text}</span>'
    if not activation > 0:
        return text
    back, ink = shade(activation / largest)
    mark = ";outline:2px solid #000000;font-weight:bold" if peak else ""
    return (
        f'<span style="background:{back};color:{ink}{mark}" title="{activation:.3g}">{text}</span>'
    )


def contexts_html(top: pd.DataFrame, tokenizer: Any) -> str:
    """Contexts of `top_contexts`, text escaped: tokens shaded by activation, the peak outlined."""
    blocks = []
    for row in top.itertuples():
        pieces = token_pieces(tokenizer, row.token_ids)
        tokens = zip(pieces, row.activations, strict=True)
        text = "".join(
            _token_html(p, a, top["activation"].max(), i == row.peak)
            for i, (p, a) in enumerate(tokens)
        )
        head = f"<b>{row.activation:.3g}</b> · {escape(row.title)}, position {row.position}"
        style = "margin:0 0 10px;padding:4px 8px;border-left:3px solid #cccccc"
        blocks.append(
            f'<div style="{style}"><div style="color:#555555;font-size:85%">{head}</div>'
            f'<div style="white-space:pre-wrap;line-height:1.6">{text}</div></div>'
        )
    return _page("".join(blocks))


def _page(inner: str) -> str:
    """On white with dark text, whatever the theme around it."""
    style = "background:#ffffff;color:#222222;padding:6px;font-family:sans-serif"
    return f'<div style="{style}">{inner}</div>'


def metrics_html(run: pd.Series) -> str:
    """A run's metrics as a small table; a value that is not defined is a dash."""
    cells = "".join(
        f'<tr><td style="text-align:left;padding:1px 14px 1px 0">{name}</td>'
        f'<td style="text-align:right">{_value(run[column])}</td></tr>'
        for column, name in METRICS.items()
        if column in run.index
    )
    return _page(f'<table style="border-collapse:collapse;color:#222222">{cells}</table>')


def _value(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    return "–" if pd.isna(value) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


# The panel


class Panel:
    """The explorer's controls and views; `explore` makes one. A cell shows its last expression."""

    def __init__(
        self,
        results: pd.DataFrame,
        runs_dir: Path,
        store: Store,
        tokenizer: Any,
        sites: Any,
        headless: bool,
    ) -> None:
        self.runs_dir, self.store, self.tokenizer, self.headless = (
            Path(runs_dir),
            store,
            tokenizer,
            headless,
        )
        self.results = _prepared(
            results, self.runs_dir, list(store.sites if sites is None else sites)
        )
        self._opened = lru_cache(maxsize=3)(self._open)
        self._filling = False
        self._build()
        self._fill(self.site, [(f"site {s}", s) for s in sorted(set(self.results["site"]))], None)
        self._on_site()

    def _build(self) -> None:
        self.site = self._control(widgets.Dropdown, "site", self._on_site)
        self.arm = self._control(widgets.Dropdown, "architecture", self._on_arm)
        self.run = self._control(widgets.Dropdown, "λ", self._on_run)
        self.suggested = self._control(widgets.Dropdown, "latents", self._on_suggested)
        self.feature = self._control(widgets.IntText, "or number", self._on_feature)
        self.curve, self.metrics, self.contexts = (
            widgets.Image(format="png"),
            widgets.HTML(),
            widgets.HTML(),
        )
        self.messages = widgets.Output()  # errors of a choice appear here
        rows = [
            (self.site, self.arm, self.run),
            (self.curve, self.metrics),
            (self.suggested, self.feature),
        ]
        self.widget = widgets.VBox([*map(widgets.HBox, rows), self.contexts, self.messages])
        self.curve.layout.width = "620px"

    def _control(self, kind: type[widgets.Widget], description: str, action: Any) -> Any:
        control = kind(
            description=description, layout={"width": "320px"}, style={"description_width": "90px"}
        )
        control.observe(self._handler(action), names="value")
        return control

    def _handler(self, action: Any) -> Any:
        """Run an action on the user's change, not on ours; what it raises is shown in the panel."""

        def handle(_change: Any) -> None:
            if not self._filling:
                self.messages.outputs = ()
                with self.messages:
                    try:
                        action()
                    except Exception:
                        self.contexts.value = ""  # not the contexts of another choice
                        raise

        return handle

    def _fill(self, control: widgets.Dropdown, options: list[tuple[str, Any]], value: Any) -> None:
        self._filling = True
        control.options = options
        control.value = value if value is not None else options[0][1] if options else None
        self._filling = False

    def _on_site(self) -> None:
        arms = looks_of(self._rows()["arm"])
        kept = self.arm.value if self.arm.value in arms else None
        self._fill(self.arm, [(look.label, arm) for arm, look in arms.items()], kept)
        self.arm.layout.display = "none" if len(arms) == 1 else None  # nothing to choose
        self._on_arm()

    def _on_arm(self) -> None:
        runs = self._rows()
        runs = runs[(runs["arm"] == self.arm.value) & runs["there"]].sort_values(
            ["lambda", "run_id"]
        )
        listed = runs[["lambda", "l0", "seed", "run_id"]].itertuples(index=False, name=None)
        options = [
            (f"{lam:g}   (L0 {l0:.3g}, seed {seed:g})", run) for lam, l0, seed, run in listed
        ]
        usual = (np.log(runs["l0"].clip(lower=L0_FLOOR)) - np.log(USUAL_L0)).abs()
        self._fill(self.run, options, runs.loc[usual.idxmin(), "run_id"])
        self._on_run()

    def _on_run(self) -> None:
        run = self.results[self.results["run_id"] == self.run.value].iloc[0]
        self.curve.value = to_png(self._figure(run))
        self.metrics.value = metrics_html(run)
        self.contexts.value = _page("encoding test tokens …")
        _, index = self._opened(self.run.value)
        density = index.density
        latents = moderate_latents(density)
        self._fill(
            self.suggested,
            [(f"{i} (on {100 * density[i]:.3g} % of tokens)", i) for i in latents],
            None,
        )
        self._set_feature(latents[0] if latents else 0)

    def _on_suggested(self) -> None:
        self._set_feature(self.suggested.value)

    def _set_feature(self, feature: int) -> None:
        self._filling = True
        self.feature.value = feature
        self._filling = False
        self._on_feature()

    def _on_feature(self) -> None:
        sae, index = self._opened(self.run.value)
        latent = self.feature.value
        n_latents = sae.config.n_latents
        if not 0 <= latent < n_latents:
            there = f"this SAE has the latents 0 to {n_latents - 1:,}"
            self.contexts.value = _page(f"There is no latent {latent:,}: {there}.")
            return
        top = top_contexts(sae, self.store, latent, index=index)
        share = f"{100 * index.density[latent]:.3g} % of {index.n_rows:,} ordinary test tokens"
        body = contexts_html(top, self.tokenizer) if len(top) else ""
        note = CONTEXTS_NOTE if body else ""
        self.contexts.value = _page(f"<b>Latent {latent}</b> fires on {share}. {note}") + body

    def _rows(self) -> pd.DataFrame:
        return self.results[self.results["site"] == self.site.value]

    def _figure(self, run: pd.Series) -> Any:
        label = looks_of([run["arm"]])[run["arm"]].label
        metrics = f"FVU {run['fvu']:.3g} with {run['l0']:.3g} active latents per token"
        title = f"{label} at λ = {run['lambda']:g}: {metrics}"
        return trade_off(self._rows(), title=title, highlight=run.name)

    def _open(self, run_id: str) -> tuple[Any, LatentIndex]:
        sae = load_sae(self.runs_dir / run_id)
        return sae, index_latents(sae, self.store)

    def _ipython_display_(self) -> None:
        if not self.headless:
            display(self.widget)
            return
        display(Image(bytes(self.curve.value), width=620))
        display(HTML(self.metrics.value + self.contexts.value))


def _prepared(results: pd.DataFrame, runs_dir: Path, sites: list[int]) -> pd.DataFrame:
    """Rows at the sites with their arm, and whether the SAE's folder is there.

    Raises:
        ValueError: no run at these sites has its folder.
    """
    there = [(runs_dir / run / "config.json").exists() for run in results["run_id"]]
    table = results.assign(arm=results["loss"], there=there)[results["site"].isin(sites)]
    usable = table[table["there"]][["site", "arm"]].drop_duplicates()
    if usable.empty:
        runs = f"none of the {len(results)} runs at sites {sites}"
        raise ValueError(f"explore: {runs} has its folder in {runs_dir}")
    return (
        table.merge(usable, on=["site", "arm"]).dropna(subset=["l0", "fvu"]).reset_index(drop=True)
    )


def explore(
    results: pd.DataFrame,
    runs_dir: Path,
    store: Store,
    lm_tokenizer: Any,
    sites: Any = None,
    headless: bool | None = None,
) -> Panel:
    """Open the panel over the runs of `results`: rows to be compared, such as one λ sweep.

    results has the columns of results.csv. Folders are `runs_dir/<run_id>`; runs without one are
    drawn but cannot be chosen. sites: those offered (default: the store's). headless: None takes
    it from the environment, `SAELIB_HEADLESS`.
    """
    headless = bool(os.environ.get("SAELIB_HEADLESS")) if headless is None else headless
    return Panel(results, runs_dir, store, lm_tokenizer, sites, headless)
