/**
 * The atlas's host: it answers the browser's questions from the data in the page.
 *
 * A latent's contexts are spans of the one token stream; `atlas.py` writes what `context` reads.
 */

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function atlasTable(table) {
  const columns = {};
  const labels = {};
  for (const column of table.numbers) {
    columns[column.name] = Float32Array.from(column.values, (value) => value ?? NaN);
    labels[column.name] = column.label;
  }
  const tokens = {};
  for (const list of table.tokens) tokens[list.name] = { width: list.width, ids: Int32Array.from(list.ids) };
  const flags = table.numbers.filter((column) => column.flag).map((column) => column.name);
  return { n: table.ids.length, ids: Int32Array.from(table.ids), columns, labels, flags, tokens, texts: table.texts };
}

/** The window that `atlas.py` wrote as [peak row, first row, [[row, activation], …]]. */
function atlasContext(stream, [row, first, stop, fired]) {
  const context = stream.context[row];
  const tokens = [];
  const activations = [];
  for (let place = first; place < stop; place += 1) {
    tokens.push(stream.pieces[stream.piece[place]]);
    activations.push(stream.ordinary[place] === "1" ? 0 : null);
  }
  for (const [place, value] of fired) activations[place - first] = value;
  const start = stream.starts[context];
  return { title: stream.titles[stream.page[context]], position: row - start, peak: row - first, tokens, activations };
}

function atlasLatent(data, latent) {
  const packed = data.latents[data.table.ids.indexOf(latent)];
  const text = (id) => data.table.texts[id] ?? String(id);
  const counts = new Array(data.edges.length - 1).fill(0);
  for (const [bin, count] of packed.histogram) counts[bin] = count;
  const contexts = {};
  for (const [kind, windows] of Object.entries(packed.contexts)) contexts[kind] = windows.map((one) => atlasContext(data.stream, one));
  const scored = (list) => list.map(([id, value]) => ({ text: text(id), value }));
  const near = (list) => list.map(([other, value]) => ({ latent: other, value }));
  const twins = packed.twins?.map(([number, twin, cosine, jaccard, mutual]) => ({
    subject: null, name: data.others[number].name, href: data.others[number].href, latent: twin, cosine, jaccard, mutual,
  }));
  return {
    latent, facts: packed.facts, histogram: { edges: data.edges, counts }, contexts,
    types: packed.types.map(([id, count, mean]) => ({ text: text(id), count, mean })),
    promoted: scored(packed.promoted), suppressed: scored(packed.suppressed),
    nearest: near(packed.nearest), companions: near(packed.companions),
    twins, ablation: packed.ablation, description: packed.description, note: packed.note,
  };
}

/** The state in the page's address: #latent=7&q=year. */
function addressed() {
  const values = new URLSearchParams(location.hash.slice(1));
  const state = {};
  if (/^\d+$/.test(values.get("latent") ?? "")) state.latent = Number(values.get("latent"));
  if (values.get("q")) state.query = values.get("q");
  if (values.get("sort")) Object.assign(state, { sort: values.get("sort"), rising: values.get("rising") === "1" });
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

async function openAtlas(element, packed) {
  const data = await unpacked(packed);
  const table = atlasTable(data.table);
  const browser = mount(element, {
    live: false,
    subjects: [{ name: data.about.name, facts: data.about.facts }],
    state: addressed(),
    open: async () => ({ about: data.about, table }),
    latent: async (_subject, latent) => atlasLatent(data, latent),
    export: async (_subject, _latents, _format, state) => ({ text: location.href.split("#")[0] + address(state) }),
    watch: (state) => history.replaceState(null, "", address(state)),
  });
  window.addEventListener("hashchange", () => {
    const { latent } = addressed();
    if (latent !== undefined && latent !== browser.state.latent) browser.openLatent(latent, true);
  });
}

const atlasElement = document.getElementById("atlas");
openAtlas(atlasElement, document.getElementById("atlas-data").textContent).catch((error) => {
  atlasElement.textContent = `This page could not be opened: ${error.message}`;
});
