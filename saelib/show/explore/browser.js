/**
 * The browser of an SAE's features: a table of all latents, a page of each, and any text.
 *
 * `mount(element, host)` draws it. The host answers its questions: in a notebook the kernel does
 * (`render`, for anywidget), in an atlas the page's own data (`atlas.js`).
 */

const VIEWS = {
  latent: "latent",
  text: "your text",
  steer: "steer",
  compare: "compare",
  keep: "export",
};
const NEED_KERNEL = ["text", "steer"];
const OF_ONE_LATENT = ["latent", "steer", "compare"]; // views that follow the table
const BOUND_TO_LATENT = ["steer", "compare", "twins", "ablate"]; // void once another is open
const PATIENCE = 150; // milliseconds before the page says that it waits
const INDEXING = "working … (the index of an SAE’s features is built at first use)";
const START = {
  subject: 0,
  latent: null,
  sort: "max",
  rising: false,
  query: "",
  ranges: {},
  show: "alive",
  view: "latent",
  text: "",
  compare: null,
  columns: null,
};

class Browser {
  constructor(root, host) {
    this.root = root;
    this.host = host;
    this.state = { ...START, ...host.state };
    if (!host.live && NEED_KERNEL.includes(this.state.view)) this.state.view = "latent";
    this.questions = {}; // the newest of each kind: answers to older ones are dropped
    this.table = new LatentTable(this);
    this.pages = {
      latent: new LatentPage(this),
      text: new TextPage(this),
      steer: new SteerPage(this),
      compare: new ComparePage(this),
      keep: new KeepPage(this),
    };
    this.draw();
    host.listen?.((state) => this.follow(state));
    this.openSubject(this.state.subject, this.state.latent);
  }

  draw() {
    this.message = el("div", { class: "message", role: "status" });
    this.strip = el("div", { class: "strip" });
    this.tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "views" });
    this.page = el("div", { class: "page", role: "tabpanel", tabindex: "-1" });
    const right = el("div", { class: "right" }, this.tabs, this.page);
    const main = el("div", { class: "main" }, this.table.element, right);
    this.root.replaceChildren(this.strip, this.message, main);
    this.root.classList.add("sae-browser");
    this.root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's keys are not for this part
    this.root.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Fill the page; null is left out. */
  show(...parts) {
    this.page.replaceChildren(...parts.filter((node) => node !== null));
  }

  // -- messages and questions

  say(text, isError = false) {
    this.message.textContent = text;
    this.message.setAttribute("role", isError ? "alert" : "status");
    this.message.classList.toggle("sae-error", isError);
  }

  /**
   * Ask the host. `question` is called with the subject's number.
   * undefined: it was refused, as the message line says, or the reader has gone on meanwhile.
   */
  async ask(kind, question, waiting = "working …") {
    const asked = { kind, scene: this.scene(kind) };
    this.questions[kind] = asked;
    const clock = setTimeout(() => this.isCurrent(asked) && this.say(waiting), PATIENCE);
    try {
      const answer = await question(this.state.subject);
      if (!this.isCurrent(asked)) return undefined;
      this.say("");
      return answer;
    } catch (error) {
      if (this.isCurrent(asked)) this.say(error.message, true);
      return undefined;
    } finally {
      clearTimeout(clock);
    }
  }

  /** What an answer is about: it is dropped once the reader looks at something else. */
  scene(kind) {
    const { subject, latent } = this.state;
    if (kind === "open") return "";
    return BOUND_TO_LATENT.includes(kind) ? `${subject} ${latent}` : String(subject);
  }

  isCurrent(asked) {
    return this.questions[asked.kind] === asked && asked.scene === this.scene(asked.kind);
  }

  change(values) {
    Object.assign(this.state, values);
    this.host.watch?.({ ...this.state });
  }

  /** Go where the host says: its address or its state was changed from outside. */
  follow({ subject = this.state.subject, latent = null }) {
    if (!this.data || subject !== this.state.subject) this.openSubject(subject, latent);
    else if (latent !== null && latent !== this.state.latent) this.openLatent(latent, true);
  }

  // -- keys

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation();
    if (event.key === "Escape") this.table.scroller?.focus();
    if (isTyping(event.target) || !this.data) return;
    if (event.key === "/") {
      event.preventDefault();
      this.table.search.focus();
      this.table.search.select();
    }
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 };
    const inTable = event.target === this.table.scroller;
    if (!inTable) return;
    if (event.key in steps) {
      event.preventDefault();
      this.table.step(steps[event.key]);
    }
    if (event.key === "Enter") this.page.focus();
  }

  // -- the SAE

  async openSubject(subject, latent = null) {
    const opened = await this.ask("open", () => this.host.open(subject), INDEXING);
    if (!opened) {
      this.drawStrip();
      return;
    }
    this.about = opened.about;
    this.data = new LatentData(opened.table, opened.about);
    this.record = null;
    this.change({ subject, latent: null });
    this.drawStrip();
    this.table.open(this.data);
    this.drawTabs();
    const usual = this.data.usualRow(this.table.order);
    const first = latent ?? (usual === null ? null : this.data.latentOf(usual));
    if (first === null) this.show(el("p", {}, "No latent is left by the filter."));
    else await this.openLatent(first, true);
  }

  /** Take the SAE's table anew: something was measured that has a column. */
  async reload() {
    const opened = await this.ask("open", () => this.host.open(this.state.subject));
    if (!opened) return;
    this.about = opened.about;
    this.data = new LatentData(opened.table, opened.about);
    this.table.open(this.data);
    this.table.mark(this.state.latent);
  }

  drawStrip() {
    const { subjects } = this.host;
    const shown = this.about;
    const options = subjects.map(({ name }, n) => option(n, name, n === this.state.subject));
    const picked = (event) => this.openSubject(Number(event.target.value));
    const picker = el("select", { "aria-label": "SAE", onchange: picked }, options);
    const name = subjects.length > 1 ? picker : el("b", {}, shown?.name ?? subjects[0]?.name ?? "");
    const warnings = (shown?.warnings ?? []).map((text) => el("div", { class: "error" }, text));
    const words = shown ? el("span", { class: "faint" }, aboutWords(shown, this.data.n)) : null;
    this.strip.replaceChildren(...[name, words, ...warnings].filter((node) => node !== null));
  }

  // -- views

  drawTabs() {
    const names = Object.keys(VIEWS).filter(
      (name) => this.host.live || !NEED_KERNEL.includes(name),
    );
    const tab = (name) => {
      const selected = String(this.state.view === name);
      const properties = { role: "tab", "aria-selected": selected, "data-view": name };
      return button(VIEWS[name], () => this.showView(name, true), properties);
    };
    this.tabs.replaceChildren(...names.map(tab));
  }

  showView(name, focus = false) {
    this.change({ view: name });
    this.drawTabs();
    if (focus) this.tabs.querySelector(`[data-view="${name}"]`)?.focus();
    this.pages[name].draw();
  }

  async openLatent(latent, reveal = false) {
    this.table.mark(latent);
    if (reveal) this.table.reveal(latent);
    const view = await this.ask("latent", async (subject) => {
      checkLatent(latent, this.about, "this SAE");
      if (this.data.rowOf(latent) >= 0) return this.host.latent(subject, latent);
      const n = digits(this.data.n);
      throw new Error(`Latent ${latent} is not in this page, which has ${n} of the SAE’s latents.`);
    });
    if (!view) {
      if (this.table.marked === latent) this.table.mark(this.state.latent);
      return;
    }
    this.record = view;
    this.change({ latent });
    const { view: name } = this.state;
    this.showView(OF_ONE_LATENT.includes(name) ? name : "latent");
  }

  compareWith(subject, latent) {
    this.change({ compare: { subject, latent } });
    this.showView("compare");
  }

  /** A button that opens a latent of this SAE; plain text where the page does not have it. */
  latentButton(latent) {
    const row = this.data.rowOf(latent);
    if (row < 0) return el("span", {}, String(latent));
    const token = this.data.tokenOf("types", row);
    const label = `${latent} ${token === null ? "(dead)" : quoted(token)}`;
    return button(label, () => this.openLatent(latent, true), { class: "link" });
  }
}

/** One line about an SAE: its size, on what it was looked at, its metrics. */
function aboutWords(about, listed) {
  const titles = about.titles ?? {};
  const metrics = Object.keys(titles)
    .filter((name) => typeof about.facts[name] === "number")
    .map((name) => `${titles[name]} ${short(about.facts[name])}`);
  const source = about.source === "own text" ? "an own text" : `${about.source} pages`;
  const tokens = `${digits(about.n_tokens)} ordinary tokens of ${source}`;
  const size = `${digits(about.n_latents)} latents, ${digits(about.n_dead)} dead on ${tokens}`;
  const here = listed < about.n_latents ? [`${digits(listed)} of them in this page`] : [];
  return [size, ...here, ...metrics].join(" · ");
}

/** Draw the browser into an element. */
export function mount(element, host) {
  return new Browser(element, host);
}

// -- the notebook's host

/** A buffer's own bytes: it may be a view into a longer message. */
function ownBytes(buffer) {
  if (!buffer.buffer) return buffer;
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
}

/** Columns and token lists out of a table's bytes. */
export function decoded(content, buffers) {
  const bytes = buffers.map(ownBytes);
  const columns = {};
  const labels = {};
  const tokens = {};
  content.numbers.forEach((column, n) => {
    columns[column.name] = new Float32Array(bytes[n]);
    labels[column.name] = column.label;
  });
  content.tokens.forEach(({ name, width }, n) => {
    tokens[name] = { width, ids: new Int32Array(bytes[content.numbers.length + n]) };
  });
  const flags = content.numbers.filter((column) => column.flag).map((column) => column.name);
  return { n: content.n, columns, labels, flags, tokens, texts: content.texts };
}

/** Questions to the kernel, each answered once; several views may ask one kernel. */
function kernelQuestions(model) {
  const waiting = new Map();
  const view = `${Date.now()} ${Math.random()}`;
  let last = 0;
  const receive = (answer, buffers) => {
    const question = waiting.get(answer.id);
    if (!question) return;
    waiting.delete(answer.id);
    if (answer.error) question.reject(new Error(answer.error));
    else question.resolve({ reply: answer.reply, buffers });
  };
  model.on("msg:custom", receive);
  const ask = (kind, values) =>
    new Promise((resolve, reject) => {
      last += 1;
      const id = `${view} ${last}`;
      waiting.set(id, { resolve, reject });
      model.send({ id, kind, ...values });
    });
  return { ask, stop: () => model.off("msg:custom", receive) };
}

function kernelHost(model) {
  const { ask, stop } = kernelQuestions(model);
  const followers = [];
  const reply = async (kind, values) => (await ask(kind, values)).reply;
  const opened = new Map();
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
    text: (subject, text, latent) => reply("text", { subject, text, latent }),
    steer: (subject, settings) => reply("steer", { subject, ...settings }),
    async twins(subject, latent) {
      const twins = await reply("twins", { subject, latent });
      opened.delete(subject); // its table has a column for them now
      return twins;
    },
    ablate: (subject, latent) => reply("ablate", { subject, latent }),
    saveNote: (subject, latent, note) => reply("note", { subject, latent, ...note }),
    export: (subject, latents, format) => reply("export", { subject, latents, format }),
    watch(state) {
      model.set("state", state);
      model.save_changes();
    },
    listen(follow) {
      followers.push(() => follow(model.get("state")));
      model.on("change:state", followers.at(-1));
    },
    /** Hear no more of the kernel: the view is closed. */
    close() {
      stop();
      for (const follower of followers) model.off("change:state", follower);
    },
  };
}

/** What anywidget calls for each view of the widget; it calls what is returned at the end. */
function render({ model, el: element }) {
  const host = kernelHost(model);
  mount(element, host);
  return () => host.close();
}

export default { render };
