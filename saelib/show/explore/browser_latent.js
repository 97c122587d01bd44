/** The page of one latent: contexts, tokens, vocabulary, relatives, and what is noted of it. */

const KINDS = [
  ["top", "strongest contexts"],
  ["middle", "contexts at a third to two thirds of its largest activation"],
  ["low", "contexts below a third of it"],
  ["off", "contexts in which it is silent"],
];
const NARROW_CONTEXTS = 4; // of each kind, where two latents stand side by side
const CONTEXTS_LEGEND =
  "One scale for all latents of this SAE: full colour is the median of their largest activations. " +
  "Outlined: the strongest token. Grey: first tokens and sinks, left out.";
const TWINS_NOTE =
  "Cosine: of the decoder directions, for SAEs of the same site. Co-firing: tokens on which both " +
  "fire, of those on which either does. SAEs of one seed begin with the same weights: a match in " +
  "another seed says more.";

/** Why a latent has no twin among so many other SAEs. */
function noTwins(relatives) {
  if (!relatives) return "There is no other SAE to compare it with.";
  return `None of ${counted(relatives, "other SAE")} has a latent like it.`;
}

/** What a latent's numbers say, in words. */
function inWords({ facts }, about) {
  const tokens = `${digits(about.n_tokens)} ordinary tokens`;
  if (facts.dead) return `Never fires on ${tokens}.`;
  const sentences = [
    `Fires on ${percent(facts.density)} of ${tokens} (${digits(facts.n_fired)}).`,
    `Largest activation ${digits(facts.max)}, mean ${digits(facts.mean)} where it fires.`,
    `Its commonest token type has ${percent(facts.concentration)} of its activation, ` +
      `which is spread as over ${counted(facts.n_types, "equal type")}.`,
  ];
  if (facts.revived) sentences.push("It was given new weights in training (revived).");
  return sentences.join(" ");
}

// -- contexts

/** A context: its tokens with their activations, null where a token is left out. */
function contextView(context, reference, marksPeak) {
  const { activations, peak, position } = context;
  const tokens = context.tokens.map((text, n) => {
    const value = activations[n];
    const reason = REASONS[position - peak + n === 0 ? "first" : "sink"];
    const title = value === null ? reason : value > 0 ? `activation ${digits(value)}` : null;
    const share = value === null ? null : value / reference;
    return { text, share, title, marked: marksPeak && n === peak };
  });
  const place = `${context.title}, position ${position}`;
  const head = marksPeak ? `${digits(activations[peak])} · ${place}` : place;
  return el(
    "div",
    { class: "context" },
    el("div", { class: "faint" }, head),
    el("div", { class: "text", dir: "auto" }, tokenSpans(tokens)),
  );
}

/** The kept contexts of each kind, the strongest open. */
function contextParts(view, about, narrow) {
  const kinds = KINDS.filter(([kind]) => view.contexts[kind].length);
  return kinds.map(([kind, title]) => {
    const kept = view.contexts[kind].slice(0, narrow ? NARROW_CONTEXTS : undefined);
    const contexts = kept.map((one) => contextView(one, about.reference, kind !== "off"));
    const head = el("summary", {}, `${title} (${kept.length})`);
    return el("details", { class: "part", open: kind === "top" }, head, contexts);
  });
}

// -- numbers

/** Bins from the first to the last that holds a firing, and a little room. */
function filledBins(counts) {
  const filled = counts.flatMap((count, bin) => (count > 0 ? [bin] : []));
  if (!filled.length) return null;
  return [Math.max(0, filled[0] - 1), Math.min(counts.length, filled[filled.length - 1] + 2)];
}

/** Round numbers on a logarithmic axis: 1, 10, …, with thirds where there are few. */
function roundTicks(low, high) {
  const steps = Math.log10(high / low) > 2.2 ? [1] : [1, 3];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const step of steps) ticks.push(Number(`${step}e${power}`));
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** Firings by activation, on a logarithmic axis. */
function histogram({ histogram: { edges, counts } }) {
  const bins = filledBins(counts);
  if (!bins) return null;
  const [low, high] = bins;
  const [width, height] = [300, 80];
  const most = Math.max(...counts);
  const label = `firings by activation, at most ${most} in a bin`;
  const frame = { viewBox: `-44 -8 ${width + 58} ${height + 44}`, class: "sae-histogram" };
  const picture = svg("svg", { ...frame, role: "img", "aria-label": label });
  const step = width / (high - low);
  for (let bin = low; bin < high; bin += 1) {
    const tall = (height * counts[bin]) / most;
    const box = { x: (bin - low) * step + 0.5, width: step - 1, y: height - tall, height: tall };
    const title = svg(
      "title",
      {},
      `${digits(edges[bin])} to ${digits(edges[bin + 1])}: ${digits(counts[bin])}`,
    );
    picture.append(svg("rect", { ...box, class: "sae-bin" }, title));
  }
  picture.append(...histogramAxes(edges[low], edges[high], most, width, height));
  return part("how strongly it fires", picture);
}

function histogramAxes(low, high, most, width, height) {
  const text = (words, x, y, anchor) => svg("text", { x, y, "text-anchor": anchor }, words);
  const place = (value) => (width * Math.log(value / low)) / Math.log(high / low);
  const ticks = roundTicks(low, high).flatMap((tick) => [
    svg("line", {
      x1: place(tick),
      x2: place(tick),
      y1: height,
      y2: height + 4,
      class: "sae-axis",
    }),
    text(short(tick), place(tick), height + 15, "middle"),
  ]);
  return [
    svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "sae-axis" }),
    ...ticks,
    text("activation (log scale)", width / 2, height + 31, "middle"),
    text(digits(most), -6, 5, "end"),
    text("tokens", -6, 17, "end"),
    text("0", -6, height, "end"),
  ];
}

// -- lists

/** Lines of a word and numbers. */
function numbered(title, lines) {
  if (!lines.length) return null;
  const rows = lines.map(([first, ...numbers]) => [
    el("span", { class: "entry" }, first),
    ...numbers.map((text) => el("span", { class: "number faint" }, text)),
  ]);
  const columns = `minmax(0, max-content) ${"max-content ".repeat(lines[0].length - 1)}`;
  const list = el("div", { class: "words" }, rows);
  list.style.gridTemplateColumns = columns;
  return part(title, list);
}

function tokenLists(view) {
  const types = view.types.map((type) => [
    word(type.text),
    `${digits(type.count)} ×`,
    `mean ${digits(type.mean)}`,
  ]);
  const scored = (entries) => entries.map((entry) => [word(entry.text), digits(entry.value)]);
  return el(
    "div",
    { class: "lists" },
    numbered("fires on", types),
    numbered("promotes (logit)", scored(view.promoted)),
    numbered("suppresses (logit)", scored(view.suppressed)),
  );
}

/** The parts of a page that need no kernel and no table. */
function latentParts(view, about, narrow = false) {
  const contexts = contextParts(view, about, narrow);
  return [
    el("p", {}, inWords(view, about)),
    ...(contexts.length
      ? [legend(about.reference, narrow ? "" : CONTEXTS_LEGEND), ...contexts]
      : []),
    tokenLists(view),
    histogram(view),
  ];
}

// -- the page

/** The page of the latent that is open. */
class LatentPage {
  constructor(browser) {
    this.browser = browser;
  }

  draw() {
    const view = this.browser.record;
    if (!view) return;
    this.browser.show(
      el("h3", { "data-latent": String(view.latent) }, `Latent ${view.latent}`),
      this.description(view),
      ...latentParts(view, this.browser.about),
      this.neighbours(view),
      this.twins(view),
      this.ablation(view),
      this.note(view),
    );
  }

  /** Draw again where the reader still looks at this latent. */
  redraw(view) {
    if (this.browser.record === view && this.browser.state.view === "latent") this.draw();
  }

  description({ description }) {
    if (!description) return null;
    const score = isMissing(description.score) ? "" : `; score ${digits(description.score)}`;
    const origin = el("span", { class: "faint" }, ` (automatic${score})`);
    return el("p", { class: "described" }, description.text, origin);
  }

  neighbours(view) {
    const lines = (entries) =>
      entries
        .filter((entry) => entry.value > 0)
        .map((entry) => [this.browser.latentButton(entry.latent), digits(entry.value)]);
    return el(
      "div",
      { class: "lists" },
      numbered("nearest directions (decoder cosine)", lines(view.nearest)),
      numbered("fires together with (Jaccard)", lines(view.companions)),
    );
  }

  // -- in other SAEs

  twins(view) {
    const title = "Is this feature real? Its best matches in other SAEs";
    if (view.twins?.length) return part(title, this.twinTable(view.twins), faint(TWINS_NOTE));
    if (view.twins) return part(title, faint(noTwins(this.browser.about.relatives)));
    if (!this.browser.host.live) return null;
    const find = button("find them", () => this.findTwins(view), { "data-action": "twins" });
    return part(title, find);
  }

  twinTable(twins) {
    const rows = twins.map((twin) => [
      twin.name,
      String(twin.latent),
      digits(twin.cosine),
      digits(twin.jaccard),
      twin.mutual ? "yes" : "no",
      this.twinAction(twin),
    ]);
    const titles = ["SAE", "latent", "cosine", "co-firing", "each other’s best", ""];
    return grid(titles, rows, [false, true, true, true, false, false]);
  }

  twinAction(twin) {
    if (twin.href) return el("a", { href: `${twin.href}#latent=${twin.latent}` }, "open");
    if (isMissing(twin.subject)) return null;
    const compare = () => this.browser.compareWith(twin.subject, twin.latent);
    return button("compare", compare, { class: "link" });
  }

  async findTwins(view) {
    const { browser } = this;
    const waiting = "working … (the other SAEs’ indices are built at first use)";
    const question = (subject) => browser.host.twins(subject, view.latent);
    const twins = await browser.ask("twins", question, waiting);
    if (!twins) return;
    view.twins = twins;
    this.redraw(view);
    if (!("twin" in browser.data.columns)) await browser.reload();
  }

  // -- without it

  ablation(view) {
    const title = "Without it";
    if (view.ablation) return part(title, el("p", {}, ablationWords(view.ablation)));
    if (!this.browser.host.live || view.facts.dead) return null;
    const measure = () => this.measureAblation(view);
    return part(title, button("measure the loss", measure, { "data-action": "ablate" }));
  }

  async measureAblation(view) {
    const { browser } = this;
    const ablation = await browser.ask("ablate", (subject) =>
      browser.host.ablate(subject, view.latent),
    );
    if (!ablation) return;
    view.ablation = ablation;
    this.redraw(view);
  }

  // -- notes

  note(view) {
    const note = view.note ?? { text: "", lists: [] };
    const title = "Notes and lists";
    if (!this.browser.host.live) {
      if (!view.note) return null;
      const lists = note.lists.length ? faint(`lists: ${note.lists.join(", ")}`) : null;
      return part(title, el("p", { class: "text" }, note.text), lists);
    }
    const area = { rows: "2", "aria-label": "note", placeholder: "what do you see?" };
    const text = el("textarea", area, note.text);
    const line = { type: "text", "aria-label": "lists", placeholder: "lists, separated by commas" };
    const lists = el("input", { ...line, value: note.lists.join(", ") });
    const save = () => this.saveNote(view, text.value, lists.value);
    return part(
      title,
      el("div", { class: "noted" }, text, lists, button("save", save, { "data-action": "note" })),
    );
  }

  async saveNote(view, text, lists) {
    const { browser } = this;
    const names = lists
      .split(",")
      .map((name) => name.trim())
      .filter(Boolean);
    const note = { text, lists: names };
    const notes = (browser.about.notes ??= {});
    const question = async (subject) => {
      await browser.host.saveNote(subject, view.latent, note);
      return note;
    };
    const saved = await browser.ask(`note ${view.latent}`, question);
    if (!saved) return;
    view.note = saved;
    notes[view.latent] = saved;
    browser.table.drawControls();
    browser.table.refilter();
    browser.say("note saved");
  }
}

function ablationWords({ delta_ce: change, n_contexts: contexts }) {
  if (isMissing(change)) return "It fires in no context in which the loss could be measured.";
  const verb = change < 0 ? "lowers" : "raises";
  return (
    `Taking it out of ${counted(contexts, "context")} in which it fires ${verb} the loss ` +
    `of the next token by ${digits(Math.abs(change))} nats a token.`
  );
}
