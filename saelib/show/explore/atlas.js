/**
 * The atlas's host: it answers the browser's questions from the data in the page.
 *
 * A latent's contexts are windows of the one token stream. `atlas.py` writes what is read here.
 */

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function atlasTable(table) {
  const columns = {};
  const labels = {};
  const tokens = {};
  for (const { name, label, values } of table.numbers) {
    columns[name] = Float32Array.from(values, (value) => value ?? NaN);
    labels[name] = label;
  }
  for (const { name, width, ids } of table.tokens)
    tokens[name] = { width, ids: Int32Array.from(ids) };
  const flags = table.numbers.filter((column) => column.flag).map((column) => column.name);
  const ids = Int32Array.from(table.ids);
  return { n: ids.length, ids, columns, labels, flags, tokens, texts: table.texts };
}

/** The window around a peak; `fired` is [place from the peak, activation, place, activation, …]. */
function atlasContext(stream, [row, fired]) {
  const context = stream.contexts.find(({ first, stop }) => row >= first && row < stop);
  const start = Math.max(context.first, row - stream.width);
  const stop = Math.min(context.stop, row + stream.width + 1);
  const tokens = [];
  const activations = [];
  for (let place = start; place < stop; place += 1) {
    tokens.push(stream.pieces[stream.piece[place]]);
    activations.push(stream.ordinary[place] === "1" ? 0 : null);
  }
  const peak = row - start;
  for (let n = 0; n < fired.length; n += 2) activations[peak + fired[n]] = fired[n + 1];
  const position = context.position + row - context.first;
  return { title: stream.titles[context.page], position, peak, tokens, activations };
}

function atlasTwin(others, [number, latent, cosine, jaccard, mutual]) {
  return { subject: null, ...others[number], latent, cosine, jaccard, mutual };
}

/** A latent's page in the shape of `records.latent_view`, with what else is known of it. */
function atlasLatent(data, latent) {
  const packed = data.latents[data.table.ids.indexOf(latent)];
  const text = (id) => data.table.texts[id] ?? String(id);
  const scored = (list) => list.map(([id, value]) => ({ text: text(id), value }));
  const near = (list) => list.map(([other, value]) => ({ latent: other, value }));
  const counts = new Array(data.edges.length - 1).fill(0);
  for (const [bin, count] of packed.histogram) counts[bin] = count;
  const contexts = {};
  for (const [kind, windows] of Object.entries(packed.contexts)) {
    contexts[kind] = windows.map((window) => atlasContext(data.stream, window));
  }
  return {
    ...packed, // facts, ablation, description, note
    latent,
    histogram: { edges: data.edges, counts },
    contexts,
    types: packed.types.map(([id, count, mean]) => ({ text: text(id), count, mean })),
    promoted: scored(packed.promoted),
    suppressed: scored(packed.suppressed),
    nearest: near(packed.nearest),
    companions: near(packed.companions),
    twins: packed.twins?.map((twin) => atlasTwin(data.others, twin)),
  };
}

// -- the page's address

/** The state in the address: #latent=7&q=year. */
function addressed() {
  const values = new URLSearchParams(location.hash.slice(1));
  const state = {};
  if (/^\d+$/.test(values.get("latent") ?? "")) state.latent = Number(values.get("latent"));
  if (values.get("q")) state.query = values.get("q");
  if (values.get("sort")) {
    Object.assign(state, { sort: values.get("sort"), rising: values.get("rising") === "1" });
  }
  return state;
}

function address(state) {
  const values = new URLSearchParams();
  if (state.latent !== null) values.set("latent", state.latent);
  if (state.query) values.set("q", state.query);
  values.set("sort", state.sort);
  if (state.rising) values.set("rising", "1");
  return `#${values}`;
}

function atlasHost(data) {
  const table = atlasTable(data.table);
  const link = (state) => location.href.split("#")[0] + address(state);
  return {
    live: false,
    subjects: [{ name: data.about.name, facts: data.about.facts }],
    state: addressed(),
    open: async () => ({ about: data.about, table }),
    latent: async (_subject, latent) => atlasLatent(data, latent),
    export: async (_subject, _latents, _format, state) => ({ text: link(state) }),
    watch: (state) => history.replaceState(null, "", address(state)),
    listen: (follow) => window.addEventListener("hashchange", () => follow(addressed())),
  };
}

/** Draw the atlas whose data is in an element of the page. */
async function openAtlas(element, packed) {
  try {
    mount(element, atlasHost(await unpacked(packed.textContent)));
  } catch (error) {
    element.textContent = `This page could not be opened: ${error.message}`;
  }
}
