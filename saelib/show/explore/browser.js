/**
 * The browser of an SAE's features: a table of all latents, a page of each, and any text.
 *
 * `mount(element, host)` draws it. The host answers its questions: in a notebook the kernel does
 * (`render`, for anywidget), in an atlas the page's own data (`atlas.js`). All texts of documents
 * go in as text nodes; nothing is fetched and nothing is evaluated.
 */

const ROW = 26; // height of a table row, in pixels; `browser.css` has the same
const SPARE = 8; // rows drawn above and below what is seen
const KINDS = [
  ["top", "strongest contexts"],
  ["middle", "contexts at a third to two thirds of its largest activation"],
  ["low", "contexts below a third of it"],
  ["off", "tokens in whose context it is silent"],
];
const REASONS = {
  first: "first token of the text: SAEs were not trained there",
  sink: "a sink, a token of huge norm: SAEs were not trained there",
};
const SHOWN = ["density", "max", "concentration"]; // number columns at first, and `twin`

// -- small helpers

/** An element; properties are set as they are, texts become text nodes, null is left out. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = `sae-${value.split(" ").join(" sae-")}`;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A number in three digits; a dash where it is not defined. */
function digits(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  return value === null || Number.isNaN(value) ? "–" : `${digits(100 * value)} %`;
}

const AS_SHARE = new Set(["density", "share_first", "share_sink"]);
const cellText = (name, value) => (AS_SHARE.has(name) ? percent(value) : digits(value));

/** A token as it is shown in a list: its line breaks and outer spaces visible. */
function visible(text) {
  return text.replace(/\n/g, "↵").replace(/^ /, "␣").replace(/^$/, "∅");
}

/** Whether an element of a form has the keys to itself. */
function isTyping(target) {
  return target instanceof HTMLElement && ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
}

// -- tokens of a context

/** The tokens of a text, each a span; `shade` says how strong each is, 0 to 1, or null. */
function tokenSpans(tokens, shade, describe, extra = () => ({})) {
  return tokens.map((token, position) => {
    const share = shade(position);
    const more = extra(position);
    const text = token === "" ? "·" : token.replace(/\n/g, "↵\n");
    const span = el("span", { ...more, title: describe(position) }, text);
    if (share === null) span.classList.add("sae-grey");
    else if (share > 0) {
      span.style.setProperty("--share", `${Math.round(100 * Math.min(share, 1))}%`);
      span.classList.add("sae-fires", ...(share >= 0.8 ? ["sae-hot"] : []));
    }
    return span;
  });
}

function contextView(context, reference) {
  const shade = (n) => {
    const value = context.activations[n];
    return value === null ? null : value / reference;
  };
  const describe = (n) => {
    const value = context.activations[n];
    return value === null ? "not an ordinary token: left out" : value > 0 ? digits(value) : null;
  };
  const extra = (n) => ({ class: n === context.peak ? "token peak" : "token" });
  const peak = context.activations[context.peak];
  const place = `${context.title}, position ${context.position}`;
  return el(
    "div",
    { class: "context" },
    el("div", { class: "faint" }, `${peak > 0 ? `${digits(peak)} · ` : ""}${place}`),
    el("div", { class: "text", dir: "auto" }, tokenSpans(context.tokens, shade, describe, extra)),
  );
}

// -- parts of a latent's page

function histogram(view) {
  const { edges, counts } = view.histogram;
  const first = counts.findIndex((count) => count > 0);
  if (first < 0) return null;
  const last = counts.length - 1 - [...counts].reverse().findIndex((count) => count > 0);
  const [low, high] = [Math.max(0, first - 2), Math.min(counts.length, last + 3)];
  const width = 300;
  const height = 84;
  const step = width / (high - low);
  const most = Math.max(...counts);
  const picture = svg("svg", {
    viewBox: `-34 -8 ${width + 44} ${height + 42}`,
    class: "sae-histogram",
    role: "img",
    "aria-label": `firings by activation, at most ${most} in a bin`,
  });
  for (let bin = low; bin < high; bin += 1) {
    const tall = (height * counts[bin]) / most;
    const bar = { x: (bin - low) * step + 0.5, y: height - tall, width: step - 1, height: tall };
    picture.append(svg("rect", { ...bar, class: "sae-bar" }));
  }
  const axis = (value, x, y, anchor) =>
    svg("text", { x, y, "text-anchor": anchor }, document.createTextNode(value));
  picture.append(svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "sae-axis" }));
  const ticks = high - low > 12 ? 8 : 4;
  for (let edge = low; edge <= high; edge += ticks) {
    picture.append(axis(digits(edges[edge]), (edge - low) * step, height + 13, "middle"));
  }
  picture.append(axis("activation, normalised units (log scale)", width / 2, height + 29, "middle"));
  picture.append(axis(digits(most), -5, 6, "end"), axis("tokens", -5, 18, "end"), axis("0", -5, height, "end"));
  return picture;
}

function tokenList(title, entries, detail) {
  if (!entries.length) return null;
  const items = entries.map((entry) =>
    el("li", {}, el("span", { class: "word", dir: "auto" }, visible(entry.text)), el("span", { class: "faint" }, ` ${detail(entry)}`)),
  );
  return el("section", { class: "part" }, el("h4", {}, title), el("ul", { class: "words" }, items));
}

/** What a latent's numbers say, as a sentence. */
function inWords(view, about) {
  const facts = view.facts;
  if (facts.dead) return `Never fires on ${digits(about.n_tokens)} ordinary tokens.`;
  const parts = [
    `Fires on ${percent(facts.density)} of ${digits(about.n_tokens)} ordinary tokens (${digits(facts.n_fired)}).`,
    `Largest activation ${digits(facts.max)}, mean ${digits(facts.mean)} where it fires.`,
    `Its commonest token type holds ${percent(facts.concentration)} of its activation mass; it spreads as over ${digits(facts.n_types)} types.`,
  ];
  if (facts.revived) parts.push("It was given new weights in training (resampled).");
  return parts.join(" ");
}

// -- the browser

class Browser {
  constructor(root, host) {
    this.root = root;
    this.host = host;
    this.state = {
      subject: 0, latent: null, sort: "max", rising: false, query: "", ranges: {}, show: "alive",
      view: "latent", text: "", compare: null, columns: null, ...host.state,
    };
    this.tickets = {}; // the newest question of each kind: older answers are dropped
    this.draw();
  }

  // -- frame

  draw() {
    this.message = el("div", { class: "message", role: "status", "aria-live": "polite" });
    this.strip = el("div", { class: "strip" });
    this.table = el("div", { class: "left" });
    this.tabs = el("div", { class: "tabs", role: "tablist" });
    this.page = el("div", { class: "page", role: "tabpanel", tabindex: "-1" });
    const right = el("div", { class: "right" }, this.tabs, this.page);
    this.root.replaceChildren(this.strip, this.message, el("div", { class: "main" }, this.table, right));
    this.root.classList.add("sae-browser");
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.openSubject(this.state.subject, this.state.latent);
  }

  say(text, isError = false) {
    this.message.textContent = text;
    this.message.setAttribute("role", isError ? "alert" : "status");
    this.message.classList.toggle("sae-error", isError);
  }

  /** Ask the host; the answer of the newest question of its kind, undefined of an outdated one. */
  async ask(kind, waiting, question) {
    const ticket = (this.tickets[kind] = (this.tickets[kind] ?? 0) + 1);
    const clock = setTimeout(() => ticket === this.tickets[kind] && this.say(waiting), 150);
    try {
      const answer = await question();
      if (ticket !== this.tickets[kind]) return undefined;
      this.say("");
      return answer;
    } catch (error) {
      if (ticket === this.tickets[kind]) this.say(error.message, true);
      return undefined;
    } finally {
      clearTimeout(clock);
    }
  }

  change(values) {
    Object.assign(this.state, values);
    this.host.watch?.(this.state);
  }

  onKey(event) {
    if (event.key === "Escape" && isTyping(event.target)) {
      event.target.blur();
      this.viewport?.focus();
    }
    if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      event.stopPropagation();
      this.search?.focus();
    }
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };
    if (event.key in steps && this.viewport?.contains(event.target)) {
      event.preventDefault();
      event.stopPropagation();
      this.step(steps[event.key]);
    }
  }

  step(by) {
    const place = this.order.indexOf(this.rowOf(this.state.latent));
    const next = Math.min(Math.max(place + by, 0), this.order.length - 1);
    if (next >= 0 && this.order.length) this.openLatent(this.idOf(this.order[next]), true);
  }

  // -- the SAE

  async openSubject(number, latent = null) {
    const waiting = "working … (the index of an SAE's features is built at first use)";
    const opened = await this.ask("open", waiting, () => this.host.open(number));
    if (!opened) return;
    this.about = opened.about;
    this.data = opened.table;
    this.rows = this.data.ids ? new Map([...this.data.ids].map((id, row) => [id, row])) : null;
    this.change({ subject: number, latent });
    this.state.columns ??= [...SHOWN, ...("twin" in this.data.columns ? ["twin"] : [])];
    if (!(this.state.sort in this.data.columns)) this.state.sort = "max";
    this.prepareSearch();
    this.drawStrip();
    this.drawTable();
    this.refilter();
    this.drawTabs();
    for (const warning of this.about.warnings ?? []) this.say(warning, true);
    const start = latent ?? (this.order.length ? this.idOf(this.order[0]) : null);
    if (start === null) this.page.replaceChildren(el("p", {}, "No latent is left by the filter."));
    else await this.openLatent(start);
  }

  idOf(row) {
    return this.data.ids ? this.data.ids[row] : row;
  }

  rowOf(latent) {
    return this.rows ? (this.rows.get(latent) ?? -1) : latent;
  }

  drawStrip() {
    const subjects = this.host.subjects;
    const options = subjects.map((subject, number) =>
      el("option", { value: String(number), selected: number === this.state.subject }, subject.name),
    );
    const picker = el(
      "select",
      { "aria-label": "SAE", onchange: (event) => this.openSubject(Number(event.target.value)) },
      options,
    );
    const about = this.about;
    const titles = about.titles ?? {};
    const metrics = Object.keys(titles)
      .filter((name) => typeof about.facts[name] === "number")
      .map((name) => `${titles[name]} ${digits(about.facts[name])}`);
    const size = `${digits(about.n_latents)} latents, ${digits(about.n_dead)} of them dead on ${digits(about.n_tokens)} ordinary tokens (${about.source})`;
    this.strip.replaceChildren(
      subjects.length > 1 ? picker : el("b", {}, about.name),
      el("span", { class: "faint" }, [size, ...metrics].join(" · ")),
    );
  }

  // -- the table

  prepareSearch() {
    const texts = Object.entries(this.data.texts);
    const largest = texts.reduce((most, [id]) => Math.max(most, Number(id)), 0);
    this.lowered = texts.map(([id, text]) => [Number(id), text.toLowerCase()]);
    this.marks = new Uint8Array(largest + 1);
  }

  tokenOf(list, row) {
    const { width, ids } = this.data.tokens[list];
    const id = width ? ids[row * width] : -1;
    return id < 0 ? "" : (this.data.texts[id] ?? String(id));
  }

  drawTable() {
    const number = el("input", {
      type: "search",
      placeholder: "search a token, or a latent's number  ( / )",
      "aria-label": "search",
      value: this.state.query,
      oninput: (event) => {
        this.change({ query: event.target.value });
        this.refilter();
      },
      onkeydown: (event) => event.key === "Enter" && this.goTo(event.target.value),
    });
    this.search = number;
    const shown = ["alive", "dead", "revived", "all", ...this.lists()];
    const choose = el(
      "select",
      { "aria-label": "which latents", onchange: (event) => this.refilter(this.change({ show: event.target.value })) },
      shown.map((name) => el("option", { value: name, selected: name === this.state.show }, name)),
    );
    this.count = el("span", { class: "faint", role: "status" });
    this.head = el("div", { class: "row head", role: "row" });
    this.body = el("div", { class: "rows" });
    this.viewport = el(
      "div",
      { class: "viewport", tabindex: "0", role: "table", "aria-label": "latents", onscroll: () => this.drawRows() },
      this.body,
    );
    const bar = el("div", { class: "bar" }, number, choose, this.columnChooser(), this.rangeEditor());
    this.table.replaceChildren(bar, this.count, el("div", { class: "scroller" }, this.head, this.viewport));
  }

  lists() {
    const notes = Object.values(this.about.notes ?? {});
    return [...new Set(notes.flatMap((note) => note.lists))].sort().map((name) => `list: ${name}`);
  }

  columnChooser() {
    const boxes = Object.keys(this.data.columns)
      .filter((name) => !this.data.flags.includes(name))
      .map((name) => {
        const toggle = (event) => {
          const kept = this.state.columns.filter((other) => other !== name);
          this.change({ columns: event.target.checked ? [...kept, name] : kept });
          this.refilter();
        };
        const box = el("input", { type: "checkbox", checked: this.state.columns.includes(name), onchange: toggle });
        return el("label", {}, box, ` ${this.data.labels[name] ?? name}`);
      });
    return el("details", { class: "menu" }, el("summary", {}, "columns"), el("div", { class: "drop" }, boxes));
  }

  rangeEditor() {
    const fields = Object.keys(this.data.columns)
      .filter((name) => !this.data.flags.includes(name))
      .map((name) => {
        const bound = (end) => {
          const current = this.state.ranges[name]?.[end];
          const set = (event) => {
            const range = [...(this.state.ranges[name] ?? [null, null])];
            range[end] = event.target.value === "" ? null : Number(event.target.value);
            this.change({ ranges: { ...this.state.ranges, [name]: range } });
            this.refilter();
          };
          const label = `${end ? "largest" : "smallest"} ${this.data.labels[name] ?? name}`;
          return el("input", {
            type: "number", step: "any", "aria-label": label, placeholder: end ? "max" : "min",
            value: current === null || current === undefined ? "" : String(current), oninput: set,
          });
        };
        return el("div", { class: "range" }, el("span", {}, this.data.labels[name] ?? name), bound(0), bound(1));
      });
    return el("details", { class: "menu" }, el("summary", {}, "limits"), el("div", { class: "drop" }, fields));
  }

  /** Which latents a search for a text leaves: a mark for each, or null for all. */
  matches() {
    const query = this.state.query.trim().toLowerCase();
    if (!query || /^#?\d+$/.test(query)) return null;
    this.marks.fill(0);
    for (const [id, text] of this.lowered) if (text.includes(query)) this.marks[id] = 1;
    const hits = new Uint8Array(this.data.n);
    for (const { width, ids } of Object.values(this.data.tokens)) {
      for (let place = 0; place < ids.length; place += 1) {
        if (ids[place] >= 0 && this.marks[ids[place]]) hits[Math.floor(place / width)] = 1;
      }
    }
    const written = { ...(this.about.descriptions ?? {}) };
    for (const [latent, note] of Object.entries(this.about.notes ?? {})) {
      written[latent] = `${written[latent] ?? ""} ${note.text} ${note.lists.join(" ")}`;
    }
    for (const [latent, text] of Object.entries(written)) {
      const row = this.rowOf(Number(latent));
      if (row >= 0 && text.toLowerCase().includes(query)) hits[row] = 1;
    }
    return hits;
  }

  passes() {
    const { dead, revived } = this.data.columns;
    const show = this.state.show;
    if (show.startsWith("list: ")) {
      const notes = this.about.notes ?? {};
      return (row) => notes[this.idOf(row)]?.lists.includes(show.slice(6)) ?? false;
    }
    if (show === "dead") return (row) => dead[row] > 0;
    if (show === "revived") return (row) => revived[row] > 0;
    return show === "all" ? () => true : (row) => !(dead[row] > 0);
  }

  refilter() {
    const hits = this.matches();
    const passes = this.passes();
    const ranges = Object.entries(this.state.ranges).filter(([name]) => name in this.data.columns);
    const kept = [];
    for (let row = 0; row < this.data.n; row += 1) {
      if (hits && !hits[row]) continue;
      if (!passes(row)) continue;
      const inside = ranges.every(([name, [low, high]]) => {
        const value = this.data.columns[name][row];
        if (low === null && high === null) return true;
        return value >= (low ?? -Infinity) && value <= (high ?? Infinity);
      });
      if (inside) kept.push(row);
    }
    this.order = this.sorted(kept);
    this.count.textContent = `${digits(kept.length)} of ${digits(this.data.n)} latents`;
    this.drawHead();
    this.drawRows();
  }

  /** Rows by the sorted column; undefined values come last, equal ones by number. */
  sorted(rows) {
    const values = this.state.sort === "latent" ? null : this.data.columns[this.state.sort];
    const sign = this.state.rising ? 1 : -1;
    if (!values) return sign > 0 ? rows : rows.reverse();
    const key = (row) => (Number.isNaN(values[row]) ? -Infinity : sign * -values[row]);
    const keys = new Float64Array(this.data.n);
    for (const row of rows) keys[row] = key(row);
    return rows.sort((a, b) => keys[b] - keys[a] || a - b);
  }

  drawHead() {
    const title = (name, label, tip) => {
      const current = this.state.sort === name;
      const direction = !current ? "none" : this.state.rising ? "ascending" : "descending";
      const sort = () => {
        this.change({ sort: name, rising: current ? !this.state.rising : name === "latent" });
        this.viewport.scrollTop = 0;
        this.refilter();
      };
      const mark = !current ? "" : this.state.rising ? " ▲" : " ▼";
      const button = el("button", { type: "button", title: tip, onclick: sort, "data-column": name }, label + mark);
      return el("span", { role: "columnheader", "aria-sort": direction, class: "number" }, button);
    };
    const words = ["fires most on", "promotes most"].map((text) => el("span", { role: "columnheader" }, text));
    const short = { density: "density", max: "largest", concentration: "concentr.", mean: "mean", n_types: "types", n_fired: "firings", nearest_cosine: "nearest", companion_jaccard: "co-firing" };
    const numbers = this.state.columns.map((name) => title(name, short[name] ?? name, this.data.labels[name] ?? name));
    this.grid = `3.6rem minmax(5rem, 1.2fr) minmax(5rem, 1fr) ${"4.6rem ".repeat(numbers.length)}`;
    this.head.style.gridTemplateColumns = this.grid;
    this.head.replaceChildren(title("latent", "latent", "number of the latent"), ...words, ...numbers);
  }

  drawRows() {
    const first = Math.max(0, Math.floor(this.viewport.scrollTop / ROW) - SPARE);
    const seen = Math.ceil((this.viewport.clientHeight || 500) / ROW) + 2 * SPARE;
    const rows = this.order.slice(first, first + seen).map((row, n) => this.tableRow(row, first + n));
    this.body.style.height = `${this.order.length * ROW}px`;
    this.body.replaceChildren(...rows);
  }

  tableRow(row, place) {
    const latent = this.idOf(row);
    const chosen = latent === this.state.latent;
    const word = (list) => el("span", { role: "cell", class: "word", dir: "auto" }, visible(this.tokenOf(list, row)));
    const numbers = this.state.columns.map((name) =>
      el("span", { role: "cell", class: "number" }, cellText(name, this.data.columns[name][row])),
    );
    const line = el(
      "div",
      { class: chosen ? "row chosen" : "row", role: "row", "aria-selected": String(chosen), "data-latent": String(latent), onclick: () => this.openLatent(latent) },
      el("span", { role: "cell", class: "number" }, String(latent)),
      word("types"), word("promoted"), numbers,
    );
    line.style.top = `${place * ROW}px`;
    line.style.gridTemplateColumns = this.grid;
    return line;
  }

  goTo(text) {
    const match = /^#?(\d+)$/.exec(text.trim());
    if (match) this.openLatent(Number(match[1]), true);
    else if (this.order.length) this.openLatent(this.idOf(this.order[0]), true);
  }

  bringIntoView(latent) {
    const place = this.order.indexOf(this.rowOf(latent));
    if (place < 0) return;
    const top = place * ROW;
    const { scrollTop, clientHeight } = this.viewport;
    if (top < scrollTop || top + ROW > scrollTop + clientHeight) this.viewport.scrollTop = top - clientHeight / 3;
  }

  // -- views

  drawTabs() {
    const views = [["latent", "latent"], ["text", "your text"], ["steer", "steer"], ["compare", "compare"], ["keep", "export"]];
    const offered = views.filter(([name]) => this.host.live || !["text", "steer"].includes(name));
    const tab = ([name, label]) =>
      el("button", {
        type: "button", role: "tab", "aria-selected": String(this.state.view === name), "data-view": name,
        onclick: () => this.showView(name),
      }, label);
    this.tabs.replaceChildren(...offered.map(tab));
  }

  showView(name) {
    this.change({ view: name });
    this.drawTabs();
    const draw = { latent: "drawLatent", text: "drawText", steer: "drawSteer", compare: "drawCompare", keep: "drawKeep" };
    this[draw[name]]();
  }

  async openLatent(latent, scroll = false) {
    if (!Number.isInteger(latent) || latent < 0 || latent >= this.about.n_latents) {
      this.say(`There is no latent ${latent}: this SAE has the latents 0 to ${digits(this.about.n_latents - 1)}.`, true);
      return;
    }
    if (this.rowOf(latent) < 0) {
      this.say(`Latent ${latent} is not in this page, which has ${digits(this.data.n)} of the SAE's latents.`, true);
      return;
    }
    const subject = this.state.subject;
    const view = await this.ask("latent", "working …", () => this.host.latent(subject, latent));
    if (!view) return;
    this.record = view;
    this.change({ latent });
    if (scroll) this.bringIntoView(latent);
    this.drawRows();
    this.showView(["latent", "steer", "compare"].includes(this.state.view) ? this.state.view : "latent");
  }

  /** A button that opens a latent of this SAE; plain text where the page does not have it. */
  latentButton(latent) {
    if (this.rowOf(latent) < 0) return el("span", {}, String(latent));
    const row = this.rowOf(latent);
    const label = `${latent} ‘${visible(this.tokenOf("types", row))}’`;
    return el("button", { type: "button", class: "link", onclick: () => this.openLatent(latent, true) }, label);
  }

  /** The parts of a latent's page that need no kernel. */
  latentParts(view, about, narrow = false) {
    const legend = el(
      "div",
      { class: "legend faint" },
      el("span", { class: "ramp" }),
      ` 0 to ${digits(about.reference)} or more: one scale for all latents of this SAE. Grey: not an ordinary token.`,
    );
    const contexts = KINDS.filter(([kind]) => view.contexts[kind].length).map(([kind, title]) => {
      const kept = narrow ? view.contexts[kind].slice(0, 4) : view.contexts[kind];
      const inner = kept.map((context) => contextView(context, about.reference));
      return el("details", { class: "part", open: kind === "top" }, el("summary", {}, `${title} (${view.contexts[kind].length})`), inner);
    });
    const logit = (entry) => digits(entry.value);
    return {
      words: el("p", {}, inWords(view, about)),
      contexts: contexts.length ? [legend, ...contexts] : [],
      lists: el(
        "div",
        { class: "lists" },
        tokenList("fires on", view.types, (entry) => `×${entry.count}, mean ${digits(entry.mean)}`),
        tokenList("promotes", view.promoted, logit),
        tokenList("suppresses", view.suppressed, logit),
      ),
      histogram: histogram(view),
    };
  }

  drawLatent() {
    const view = this.record;
    if (!view) return;
    const parts = this.latentParts(view, this.about);
    const description = view.description
      ? el("p", { class: "described" }, view.description.text, el("span", { class: "faint" }, ` (automatic; score ${digits(view.description.score)})`))
      : null;
    const title = el("h3", { "data-latent": String(view.latent) }, `Latent ${view.latent}`);
    this.page.replaceChildren(
      ...[title, description, parts.words, ...parts.contexts, parts.lists, parts.histogram, this.relations(view), this.twinPart(view), this.ablationPart(view), this.notePart(view)].filter(Boolean),
    );
  }

  relations(view) {
    const list = (title, entries) => {
      const living = entries.filter((entry) => entry.value !== null && entry.value > 0);
      if (!living.length) return null;
      const items = living.map((entry) => el("li", {}, this.latentButton(entry.latent), el("span", { class: "faint" }, ` ${digits(entry.value)}`)));
      return el("section", { class: "part" }, el("h4", {}, title), el("ul", { class: "words" }, items));
    };
    return el("div", { class: "lists" }, list("nearest directions (decoder cosine)", view.nearest), list("fires together with (Jaccard)", view.companions));
  }

  twinPart(view) {
    const head = el("h4", {}, "Is this feature real? Its best matches in other SAEs");
    if (!view.twins) {
      if (!this.host.live) return null;
      const find = async () => {
        const waiting = "working … (the other SAEs' indices are built at first use)";
        const twins = await this.ask("twins", waiting, () => this.host.twins(this.state.subject, view.latent));
        if (twins && this.record === view) {
          view.twins = twins;
          this.drawLatent();
        }
      };
      return el("section", { class: "part" }, head, el("button", { type: "button", "data-action": "twins", onclick: find }, "find them"));
    }
    if (!view.twins.length) return el("section", { class: "part" }, head, el("p", { class: "faint" }, "No other SAE of this recipe was trained."));
    const rows = view.twins.map((twin) => this.twinRow(twin));
    const titles = ["SAE", "latent", "cosine", "co-firing", "each other's best", ""].map((text) => el("th", {}, text));
    const note = "Cosine of the decoder rows, at the same site; co-firing: tokens on which both fire, of those on which either does.";
    return el("section", { class: "part" }, head, el("div", { class: "wide" }, el("table", {}, el("tr", {}, titles), rows)), el("p", { class: "faint" }, note));
  }

  twinRow(twin) {
    const known = twin.subject !== null && twin.subject !== undefined;
    let action = null;
    if (twin.href) action = el("a", { href: `${twin.href}#latent=${twin.latent}` }, "open");
    else if (known && twin.latent >= 0) {
      const compare = () => {
        this.change({ compare: { subject: twin.subject, latent: twin.latent } });
        this.showView("compare");
      };
      action = el("button", { type: "button", class: "link", onclick: compare }, "compare");
    }
    const cells = [twin.name, twin.latent < 0 ? "–" : String(twin.latent), digits(twin.cosine), digits(twin.jaccard), twin.mutual ? "yes" : "no"];
    return el("tr", {}, cells.map((text) => el("td", {}, text)), el("td", {}, action));
  }

  ablationPart(view) {
    const head = el("h4", {}, "Without it");
    const words = (ablation) =>
      `Taking it out of ${digits(ablation.n_contexts)} contexts in which it fires raises the next-token loss by ${digits(ablation.delta_ce)} nats a token.`;
    if (view.ablation) return el("section", { class: "part" }, head, el("p", {}, words(view.ablation)));
    if (!this.host.live || view.facts.dead) return null;
    const measure = async () => {
      const result = await this.ask("ablate", "working …", () => this.host.ablate(this.state.subject, view.latent));
      if (result && this.record === view) {
        view.ablation = result;
        this.drawLatent();
      }
    };
    return el("section", { class: "part" }, head, el("button", { type: "button", "data-action": "ablate", onclick: measure }, "measure the loss"));
  }

  notePart(view) {
    const note = view.note ?? { text: "", lists: [] };
    const head = el("h4", {}, "Notes and lists");
    if (!this.host.live) {
      if (!view.note) return null;
      return el("section", { class: "part" }, head, el("p", {}, note.text), el("p", { class: "faint" }, note.lists.join(", ")));
    }
    const text = el("textarea", { rows: "2", "aria-label": "note", placeholder: "what do you see?" }, note.text);
    const lists = el("input", { type: "text", "aria-label": "lists", placeholder: "lists, separated by commas", value: note.lists.join(", ") });
    const save = async () => {
      const names = lists.value.split(",").map((name) => name.trim()).filter(Boolean);
      const kept = { text: text.value, lists: names };
      const saved = await this.ask("note", "working …", async () => {
        await this.host.saveNote(this.state.subject, view.latent, kept);
        return true;
      });
      if (!saved) return;
      view.note = kept;
      this.about.notes = { ...(this.about.notes ?? {}), [view.latent]: kept };
      this.drawTable();
      this.refilter();
      this.say("note saved");
    };
    const button = el("button", { type: "button", "data-action": "note", onclick: save }, "save");
    return el("section", { class: "part noted" }, head, text, lists, button);
  }

  // -- own text

  drawText() {
    const area = el("textarea", { rows: "3", "aria-label": "your text", placeholder: "type or paste any text" }, this.state.text);
    const button = el("button", { type: "button", "data-action": "text", onclick: () => this.readText(area.value) }, "look");
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.readText(area.value);
    });
    this.seenPart = el("div", {});
    this.page.replaceChildren(el("h3", {}, "Your text"), area, button, this.seenPart);
    if (this.seen) this.drawSeen();
  }

  async readText(text) {
    this.change({ text });
    const seen = await this.ask("text", "working …", () => this.host.text(this.state.subject, text));
    if (!seen) return;
    this.seen = seen;
    this.position = null;
    if (this.state.view === "text") this.drawSeen();
  }

  drawSeen() {
    const seen = this.seen;
    const ordinary = (n) => seen.classes[n] === "ordinary";
    const missed = (n) => `the SAE misses ${percent(seen.missed[n])} of this token`;
    const describe = (n) => (ordinary(n) ? missed(n) : REASONS[seen.classes[n]]);
    const shade = (n) => (ordinary(n) ? (seen.latents[n][0]?.code ?? 0) / this.about.reference : null);
    const extra = (n) => ({
      class: n === this.position ? "token seen peak" : "token seen",
      tabindex: "0", role: "button",
      onclick: () => this.chooseToken(n),
      onkeydown: (event) => event.key === "Enter" && this.chooseToken(n),
    });
    const spans = tokenSpans(seen.tokens, shade, describe, extra);
    spans.forEach((span, n) => {
      if (ordinary(n)) span.style.setProperty("--missed", `${Math.round(100 * Math.min(seen.missed[n], 1))}%`);
    });
    const odd = seen.classes.flatMap((name, n) => (name === "ordinary" ? [] : [`‘${visible(seen.tokens[n])}’: ${REASONS[name]}`]));
    const parts = [
      el("div", { class: "text own", dir: "auto" }, spans),
      el("p", { class: "faint" }, "Colour: the code of the token's leading latent. Line below: the share of the token that the SAE does not rebuild. Click a token for its latents."),
    ];
    if (odd.length) parts.push(el("p", { class: "faint" }, `Greyed: ${odd.join("; ")}.`));
    this.chosen = el("div", {});
    this.seenPart.replaceChildren(...parts, this.chosen);
    if (this.position !== null) this.drawToken();
  }

  chooseToken(n) {
    this.position = n;
    this.drawSeen();
  }

  drawToken() {
    const n = this.position;
    const latents = this.seen.latents[n];
    const title = el("h4", {}, `‘${visible(this.seen.tokens[n])}’, position ${n}`);
    if (this.seen.classes[n] !== "ordinary") {
      this.chosen.replaceChildren(title, el("p", {}, `No latents: ${REASONS[this.seen.classes[n]]}.`));
      return;
    }
    const rows = latents.map((entry) =>
      el("tr", {}, el("td", {}, this.latentButton(entry.latent)), el("td", { class: "number" }, digits(entry.code)), el("td", { class: "number" }, digits(entry.score))),
    );
    const head = el("tr", {}, ["latent", "code", "score"].map((text) => el("th", {}, text)));
    const note = "Score = code · ln(1 / density): the rarer a latent is, the more its firing says.";
    this.chosen.replaceChildren(
      title,
      el("p", {}, `The SAE misses ${percent(this.seen.missed[n])} of this token. ${latents.length ? "" : "No latent fires on it."}`),
      latents.length ? el("div", { class: "wide" }, el("table", {}, head, rows)) : "",
      latents.length ? el("p", { class: "faint" }, note) : "",
    );
  }

  // -- steering

  drawSteer() {
    const saved = (this.steering ??= { mode: "add", strength: 2, prompt: "My favourite place is", n_tokens: 20 });
    const field = (label, control) => el("label", { class: "field" }, el("span", {}, label), control);
    const modes = ["add", "scale", "clamp", "ablate"];
    const mode = el("select", {}, modes.map((name) => el("option", { value: name, selected: name === saved.mode }, name)));
    const strength = el("input", { type: "number", step: "0.5", value: String(saved.strength) });
    const slider = el("input", { type: "range", min: "-5", max: "10", step: "0.5", value: String(saved.strength), "aria-label": "strength" });
    slider.addEventListener("input", () => (strength.value = slider.value));
    strength.addEventListener("input", () => (slider.value = strength.value));
    const prompt = el("textarea", { rows: "2", "aria-label": "prompt" }, saved.prompt);
    const length = el("input", { type: "number", min: "1", max: "200", value: String(saved.n_tokens) });
    const run = () => {
      Object.assign(saved, { mode: mode.value, strength: Number(strength.value), prompt: prompt.value, n_tokens: Number(length.value) });
      this.steer(saved);
    };
    const words =
      "Changes this latent's code at every token but the first, and lets the model go on. Strength: in multiples of the latent's largest activation (add, clamp), or a factor (scale). What the SAE misses stays in the stream.";
    this.steered = el("div", {});
    this.page.replaceChildren(
      el("h3", {}, `Steer latent ${this.state.latent}`), el("p", { class: "faint" }, words), field("prompt", prompt),
      el("div", { class: "fields" }, field("mode", mode), field("strength", strength), slider, field("tokens", length)),
      el("button", { type: "button", "data-action": "steer", onclick: run }, "go on"), this.steered,
    );
  }

  async steer(settings) {
    const latent = this.state.latent;
    const question = { latent, ...settings };
    const result = await this.ask("steer", "working …", () => this.host.steer(this.state.subject, question));
    if (!result || this.state.view !== "steer") return;
    const side = (title, text, kind) => el("div", { class: `side ${kind}` }, el("h4", {}, title), el("p", { class: "text", dir: "auto" }, settings.prompt, el("b", {}, text)));
    const most = Math.max(...result.next_tokens.flatMap((row) => [row.before, row.after]), 1e-9);
    const bar = (value, kind) => {
      const line = el("span", { class: `meter ${kind}` });
      line.style.width = `${(6 * value) / most}rem`;
      return el("td", {}, line, el("span", { class: "faint" }, ` ${percent(value)}`));
    };
    const rows = result.next_tokens.map((row) => el("tr", {}, el("td", { class: "word" }, visible(row.token)), bar(row.before, "before"), bar(row.after, "after")));
    const head = el("tr", {}, ["next token", "before", "after"].map((text) => el("th", {}, text)));
    this.steered.replaceChildren(
      el("div", { class: "sides" }, side("before", result.before, "before"), side("after", result.after, "after")),
      el("p", { "data-kl": String(result.kl) }, `The next token's distribution moves by ${digits(result.kl)} nats (KL of before from after).`),
      el("div", { class: "wide" }, el("table", {}, head, rows)),
    );
  }

  // -- comparing

  async drawCompare() {
    const other = (this.state.compare ??= { subject: this.state.subject, latent: this.record?.nearest[0]?.latent ?? this.state.latent });
    const subjects = this.host.subjects.map((subject, number) => el("option", { value: String(number), selected: number === other.subject }, subject.name));
    const picker = el("select", { "aria-label": "other SAE" }, subjects);
    const number = el("input", { type: "number", min: "0", value: String(other.latent), "aria-label": "other latent" });
    const go = () => {
      this.change({ compare: { subject: Number(picker.value), latent: Number(number.value) } });
      this.drawCompare();
    };
    const button = el("button", { type: "button", "data-action": "compare", onclick: go }, "compare");
    const beside = el("div", { class: "sides" });
    this.page.replaceChildren(el("h3", {}, `Latent ${this.state.latent} beside another`), el("div", { class: "fields" }, this.host.subjects.length > 1 ? picker : null, number, button), beside);
    const answer = await this.ask("compare", "working …", async () => {
      const { about } = await this.host.open(other.subject);
      if (!(other.latent >= 0 && other.latent < about.n_latents)) {
        throw new Error(`There is no latent ${other.latent}: that SAE has the latents 0 to ${digits(about.n_latents - 1)}.`);
      }
      return { about, view: await this.host.latent(other.subject, other.latent) };
    });
    if (!answer || this.state.view !== "compare") return;
    const side = (view, about) => {
      const parts = this.latentParts(view, about, true);
      const title = el("h4", {}, `latent ${view.latent}`, el("span", { class: "faint" }, ` ${about.name}`));
      return el("div", { class: "side", "data-compared": String(view.latent) }, title, parts.words, parts.contexts, parts.lists, parts.histogram);
    };
    beside.replaceChildren(side(this.record, this.about), side(answer.view, answer.about));
  }

  // -- keeping

  drawKeep() {
    const listed = this.order.length;
    const result = el("p", { class: "text" });
    const save = (format) => async () => {
      const latents = this.order.map((row) => this.idOf(row));
      const question = () => this.host.export(this.state.subject, latents, format, this.state);
      const answer = await this.ask("export", "working …", question);
      if (answer) result.textContent = answer.path ? `written: ${answer.path}` : answer.text;
    };
    const formats = this.host.live ? [["csv", "table (CSV)"], ["json", "a JSON file a latent"], ["link", "a line that reopens it"]] : [["link", "a link to this view"]];
    const buttons = formats.map(([format, label]) => el("button", { type: "button", "data-export": format, onclick: save(format) }, label));
    this.page.replaceChildren(
      el("h3", {}, "Keep the selection"), el("p", {}, `${digits(listed)} latents are left by the search and the limits, in the table's order.`),
      el("div", { class: "fields" }, buttons), result,
    );
  }
}

/** Draw the browser into an element. */
export function mount(element, host) {
  return new Browser(element, host);
}

// -- the notebook's host

/** Columns and token lists out of a table's bytes. */
export function decoded(content, buffers) {
  const bytes = buffers.map((buffer) => (buffer.buffer ? buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) : buffer));
  const columns = {};
  const labels = {};
  content.numbers.forEach((column, n) => {
    columns[column.name] = new Float32Array(bytes[n]);
    labels[column.name] = column.label;
  });
  const tokens = {};
  content.tokens.forEach((list, n) => {
    tokens[list.name] = { width: list.width, ids: new Int32Array(bytes[content.numbers.length + n]) };
  });
  const flags = content.numbers.filter((column) => column.flag).map((column) => column.name);
  return { n: content.n, columns, labels, flags, tokens, texts: content.texts };
}

function kernelHost(model) {
  const waiting = new Map();
  const opened = new Map();
  let last = 0;
  model.on("msg:custom", (answer, buffers) => {
    const question = waiting.get(answer.id);
    if (!question) return;
    waiting.delete(answer.id);
    if (answer.error) question.reject(new Error(answer.error));
    else question.resolve({ reply: answer.reply, buffers });
  });
  const ask = (kind, values) =>
    new Promise((resolve, reject) => {
      last += 1;
      waiting.set(last, { resolve, reject });
      model.send({ id: last, kind, ...values });
    });
  const reply = async (kind, values) => (await ask(kind, values)).reply;
  const open = async (subject) => {
    if (!opened.has(subject)) {
      const { reply: content, buffers } = await ask("open", { subject });
      opened.set(subject, { about: content.about, table: decoded(content.table, buffers) });
    }
    return opened.get(subject);
  };
  return {
    live: true,
    subjects: model.get("subjects"),
    state: model.get("state"),
    open,
    latent: (subject, latent) => reply("latent", { subject, latent }),
    text: (subject, text) => reply("text", { subject, text }),
    steer: (subject, settings) => reply("steer", { subject, ...settings }),
    twins: (subject, latent) => reply("twins", { subject, latent }),
    ablate: (subject, latent) => reply("ablate", { subject, latent }),
    saveNote: (subject, latent, note) => reply("note", { subject, latent, ...note }),
    export: (subject, latents, format) => reply("export", { subject, latents, format }),
    watch(state) {
      model.set("state", { ...state });
      model.save_changes();
    },
  };
}

/** What anywidget calls for each view of the widget. */
function render({ model, el: element }) {
  mount(element, kernelHost(model));
}

export default { render };
