/** The table of all latents: searched, limited, sorted, and drawn as far as it is seen. */

const ROW = 26; // height of a row, in pixels; `browser.css` has the same
const SPARE = 8; // rows drawn above and below what is seen
const SHOWN = ["density", "max", "concentration", "twin"]; // number columns at first
const USUAL_DENSITY = 3e-3; // the first latent fires about as often, as in `static.py`
const SHARES = new Set(["density", "concentration", "share_first", "share_sink"]);
const HEADS = {
  density: "density",
  max: "largest",
  mean: "mean",
  concentration: "concentr.",
  n_types: "types",
  n_fired: "firings",
  nearest_cosine: "nearest",
  companion_jaccard: "co-firing",
  share_first: "on first",
  share_sink: "on sinks",
  twin: "twin",
};
const WORDS = {
  types: ["fires on", "the token type with most of its activation"],
  promoted: ["promotes", "the token whose logit it raises most"],
};
const NUMBER = /^#?(\d+)$/;

let tables = 0; // browsers of a page, so that ids of their rows differ

/** A table's values: columns by name, texts, and which row is which latent. */
class LatentData {
  constructor(table, about) {
    Object.assign(this, table); // n, ids, columns, labels, flags, tokens, texts
    this.about = about;
    this.rows = table.ids ? new Map([...table.ids].map((id, row) => [id, row])) : null;
    const texts = Object.entries(table.texts);
    this.lowered = texts.map(([id, text]) => [Number(id), text.toLowerCase()]);
    this.marks = new Uint8Array(this.lowered.reduce((most, [id]) => Math.max(most, id), 0) + 1);
  }

  latentOf(row) {
    return this.ids ? this.ids[row] : row;
  }

  /** The row of a latent, -1 where the table does not have it. */
  rowOf(latent) {
    if (latent === null) return -1;
    if (this.rows) return this.rows.get(latent) ?? -1;
    return latent < this.n ? latent : -1;
  }

  /** The first token of a list of a latent's, null where it has none. */
  tokenOf(list, row) {
    const { width, ids } = this.tokens[list];
    const id = width ? ids[row * width] : -1;
    return id < 0 ? null : (this.texts[id] ?? String(id));
  }

  get numbers() {
    return Object.keys(this.columns).filter((name) => !this.flags.includes(name));
  }

  labelOf(name) {
    return this.labels[name] ?? name;
  }

  get lists() {
    const notes = Object.values(this.about.notes ?? {});
    return [...new Set(notes.flatMap((note) => note.lists))].sort();
  }

  // -- which rows

  /** A mark for each row whose tokens, description or notes hold a text. */
  matches(query) {
    const hits = new Uint8Array(this.n);
    this.marks.fill(0);
    for (const [id, text] of this.lowered) if (text.includes(query)) this.marks[id] = 1;
    for (const { width, ids } of Object.values(this.tokens)) {
      for (let place = 0; place < ids.length; place += 1) {
        if (ids[place] >= 0 && this.marks[ids[place]]) hits[Math.floor(place / width)] = 1;
      }
    }
    for (const [latent, text] of this.written()) {
      const row = this.rowOf(latent);
      if (row >= 0 && text.toLowerCase().includes(query)) hits[row] = 1;
    }
    return hits;
  }

  /** [latent, text] of all descriptions and notes. */
  written() {
    const described = Object.entries(this.about.descriptions ?? {});
    const noted = Object.entries(this.about.notes ?? {});
    return [
      ...described,
      ...noted.map(([latent, note]) => [latent, `${note.text} ${note.lists.join(" ")}`]),
    ].map(([latent, text]) => [Number(latent), text]);
  }

  /** Whether a row belongs to what is shown: "alive", "dead", "revived", "all", "list: …". */
  membership(show) {
    const { dead, revived } = this.columns;
    if (show.startsWith("list: ")) {
      const notes = this.about.notes ?? {};
      return (row) => notes[this.latentOf(row)]?.lists.includes(show.slice(6)) ?? false;
    }
    if (show === "dead") return (row) => dead[row] > 0;
    if (show === "revived") return (row) => revived[row] > 0;
    return show === "all" ? () => true : (row) => !(dead[row] > 0);
  }

  /** Rows that a search, limits and the choice of what is shown leave. */
  filtered({ query, ranges, show }) {
    const sought = query.trim().toLowerCase();
    const number = NUMBER.exec(sought);
    const named = number ? this.rowOf(Number(number[1])) : -1;
    const hits = sought ? this.matches(sought) : null;
    const belongs = this.membership(show);
    const limits = Object.entries(ranges)
      .filter(([name, [low, high]]) => name in this.columns && (low !== null || high !== null))
      .map(([name, [low, high]]) => [this.columns[name], low ?? -Infinity, high ?? Infinity]);
    const kept = [];
    for (let row = 0; row < this.n; row += 1) {
      const inside = (!hits || hits[row]) && belongs(row);
      const within = limits.every(
        ([values, low, high]) => values[row] >= low && values[row] <= high,
      );
      if ((inside && within) || row === named) kept.push(row);
    }
    return kept;
  }

  /** Rows by a column; undefined values come last, equal ones by number. */
  sorted(rows, name, rising) {
    if (!(name in this.columns)) return rising ? rows : rows.reverse();
    const values = this.columns[name];
    const sign = rising ? -1 : 1;
    const keys = new Float64Array(this.n);
    for (const row of rows) keys[row] = Number.isNaN(values[row]) ? -Infinity : sign * values[row];
    return rows.sort((a, b) => keys[b] - keys[a] || a - b);
  }

  /** Of some rows the one that is neither rare nor dense; null where there are none. */
  usualRow(rows) {
    const { density } = this.columns;
    const distance = (row) =>
      density[row] > 0 ? Math.abs(Math.log(density[row] / USUAL_DENSITY)) : Infinity;
    return rows.length ? rows.reduce((a, b) => (distance(b) < distance(a) ? b : a)) : null;
  }
}

/** Draws the table and its controls; `browser` has the state and opens latents. */
class LatentTable {
  constructor(browser) {
    this.browser = browser;
    this.element = el("div", { class: "left" });
    this.order = []; // rows as they are listed
    this.marked = null; // the latent that is open, or was asked for
    tables += 1;
    this.name = `sae-table-${tables}`;
    this.measured = new ResizeObserver(() => this.data && this.drawRows());
  }

  get state() {
    return this.browser.state;
  }

  /** Number columns that are drawn: the reader's choice, as far as this SAE has them. */
  get columns() {
    return (this.state.columns ?? SHOWN).filter((name) => name in this.data.columns);
  }

  open(data) {
    this.data = data;
    if (!(this.state.sort in data.columns)) this.state.sort = "max";
    this.drawControls();
    this.refilter();
  }

  /** Change what is listed, and list it. */
  choose(values) {
    this.browser.change(values);
    this.refilter();
  }

  refilter() {
    const { sort, rising } = this.state;
    this.order = this.data.sorted(this.data.filtered(this.state), sort, rising);
    const kept = digits(this.order.length);
    this.count.textContent = `${kept} of ${digits(this.data.n)} latents`;
    this.drawHead();
    this.drawRows();
  }

  // -- controls

  drawControls() {
    this.search = el("input", {
      type: "search",
      placeholder: "search tokens, or a latent’s number",
      title: "Tokens, vocabulary, descriptions and notes. Key: /",
      "aria-label": "search",
      value: this.state.query,
      oninput: (event) => this.choose({ query: event.target.value }),
      onkeydown: (event) => event.key === "Enter" && this.goTo(event.target.value),
    });
    this.limits = el("summary", {});
    const menus = [
      this.showChooser(),
      menu(el("summary", {}, "columns"), this.columnBoxes()),
      menu(
        this.limits,
        el(
          "div",
          {},
          this.rangeFields(),
          button("no limits", () => this.clear()),
        ),
      ),
    ];
    this.count = el("span", { class: "faint", role: "status" });
    this.head = el("div", { class: "row head", role: "row" });
    this.body = el("div", { class: "rows", role: "presentation" });
    this.scroller = el(
      "div",
      {
        class: "scroller",
        tabindex: "0",
        role: "grid",
        "aria-label": "latents",
        onscroll: () => this.drawRows(),
      },
      this.head,
      this.body,
    );
    const bar = el("div", { class: "bar" }, this.search, menus);
    this.element.replaceChildren(bar, this.count, this.scroller);
    this.sayLimits();
    this.measured.disconnect();
    this.measured.observe(this.scroller);
  }

  showChooser() {
    const names = [
      "alive",
      "dead",
      "revived",
      "all",
      ...this.data.lists.map((name) => `list: ${name}`),
    ];
    if (!names.includes(this.state.show)) this.state.show = "alive";
    const chosen = (event) => this.choose({ show: event.target.value });
    const options = names.map((name) => option(name, name, name === this.state.show));
    return el("select", { "aria-label": "which latents", onchange: chosen }, options);
  }

  columnBoxes() {
    return this.data.numbers.map((name) => {
      const toggle = (event) => {
        const others = (this.state.columns ?? SHOWN).filter((other) => other !== name);
        this.choose({ columns: event.target.checked ? [...others, name] : others });
      };
      const checked = this.columns.includes(name);
      const box = el("input", { type: "checkbox", checked, onchange: toggle });
      return el("label", {}, box, ` ${this.data.labelOf(name)}`);
    });
  }

  rangeFields() {
    return this.data.numbers.map((name) => {
      const ends = ["smallest", "largest"].map((end, n) => this.rangeField(name, end, n));
      return el("div", { class: "range" }, el("span", {}, this.data.labelOf(name)), ends);
    });
  }

  rangeField(name, end, n) {
    const limit = this.state.ranges[name]?.[n] ?? null;
    const set = (event) => {
      const range = [...(this.state.ranges[name] ?? [null, null])];
      range[n] = event.target.value === "" ? null : Number(event.target.value);
      this.choose({ ranges: { ...this.state.ranges, [name]: range } });
      this.sayLimits();
    };
    return el("input", {
      type: "number",
      step: "any",
      "aria-label": `${end}: ${this.data.labelOf(name)}`,
      placeholder: n ? "max" : "min",
      value: limit === null ? "" : String(limit),
      oninput: set,
    });
  }

  sayLimits() {
    const set = Object.values(this.state.ranges).filter((range) =>
      range.some((end) => end !== null),
    );
    this.limits.textContent = set.length ? `limits (${set.length})` : "limits";
  }

  clear() {
    this.browser.change({ ranges: {} });
    this.drawControls();
    this.refilter();
  }

  // -- rows

  drawHead() {
    const numbers = this.columns.map((name) =>
      this.sortHead(name, HEADS[name] ?? name, this.data.labelOf(name)),
    );
    const words = Object.values(WORDS).map(([text, title]) =>
      el("span", { role: "columnheader", title }, text),
    );
    this.grid = `3.2rem minmax(4.5rem, 1.2fr) minmax(4rem, 1fr) ${"4.5rem ".repeat(numbers.length)}`;
    const width = `${13.7 + 5 * numbers.length}rem`;
    for (const node of [this.head, this.body]) node.style.minWidth = width;
    this.head.style.gridTemplateColumns = this.grid;
    const latent = this.sortHead("latent", "latent", "number of the latent");
    this.head.replaceChildren(latent, ...words, ...numbers);
    this.scroller.setAttribute("aria-rowcount", String(this.order.length + 1));
  }

  sortHead(name, label, title) {
    const current = this.state.sort === name;
    const rising = current && this.state.rising;
    const sort = () => {
      this.scroller.scrollTop = 0;
      this.choose({ sort: name, rising: current ? !rising : name === "latent" });
      this.head.querySelector(`[data-column="${name}"]`).focus();
    };
    const mark = current ? (rising ? " ▲" : " ▼") : "";
    const direction = current ? (rising ? "ascending" : "descending") : "none";
    return el(
      "span",
      { role: "columnheader", "aria-sort": direction, class: "number" },
      button(label + mark, sort, { title, "data-column": name }),
    );
  }

  drawRows() {
    const { scrollTop, clientHeight } = this.scroller;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - SPARE);
    const seen = Math.ceil((clientHeight || 500) / ROW) + 2 * SPARE;
    const rows = this.order.slice(first, first + seen).map((row, n) => this.row(row, first + n));
    this.body.style.height = `${this.order.length * ROW}px`;
    this.body.replaceChildren(...rows);
    const chosen = rows.find((row) => row.classList.contains("sae-chosen"));
    if (chosen) this.scroller.setAttribute("aria-activedescendant", chosen.id);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  row(row, place) {
    const latent = this.data.latentOf(row);
    const chosen = latent === this.marked;
    const properties = {
      class: chosen ? "row chosen" : "row",
      role: "row",
      id: `${this.name}-${latent}`,
      "aria-selected": String(chosen),
      "aria-rowindex": String(place + 2),
      "data-latent": String(latent),
      onclick: () => this.browser.openLatent(latent),
    };
    const line = el("div", properties, this.cells(row, latent));
    line.style.top = `${place * ROW}px`;
    line.style.gridTemplateColumns = this.grid;
    return line;
  }

  cells(row, latent) {
    const number = (text) => el("span", { role: "gridcell", class: "number" }, text);
    const token = (list) => {
      const text = this.data.tokenOf(list, row);
      const shown = text === null ? "–" : visible(text);
      return el("span", { role: "gridcell", class: "word", dir: "auto" }, shown);
    };
    const value = (name) => {
      const shown = this.data.columns[name][row];
      return number(SHARES.has(name) ? percent(shown) : digits(shown));
    };
    const numbers = this.columns.map(value);
    return [number(String(latent)), ...Object.keys(WORDS).map(token), ...numbers];
  }

  // -- going somewhere

  /** What Enter in the search does: to the latent of that number, else to the first listed. */
  goTo(text) {
    const match = NUMBER.exec(text.trim());
    if (match) this.browser.openLatent(Number(match[1]), true);
    else if (this.order.length) this.browser.openLatent(this.data.latentOf(this.order[0]), true);
  }

  step(by) {
    if (!this.order.length) return;
    const place = this.order.indexOf(this.data.rowOf(this.marked)) + by;
    const next = Math.min(Math.max(place, 0), this.order.length - 1);
    this.browser.openLatent(this.data.latentOf(this.order[next]), true);
  }

  /** Show which latent is open, or will be. */
  mark(latent) {
    this.marked = latent;
    this.drawRows();
  }

  reveal(latent) {
    const place = this.order.indexOf(this.data.rowOf(latent));
    const top = place * ROW;
    const { scrollTop, clientHeight } = this.scroller;
    const seen = clientHeight - ROW; // the head lies over the first row
    if (place < 0 || (top >= scrollTop && top + ROW <= scrollTop + seen)) return;
    this.scroller.scrollTop = top - clientHeight / 3;
  }
}

/** A button that unfolds its content over what lies below. */
function menu(summary, content) {
  const drop = el("div", { class: "drop" }, content);
  const details = el("details", { class: "menu" }, summary, drop);
  details.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !details.open) return;
    event.stopPropagation();
    details.open = false;
    summary.focus();
  });
  return details;
}
