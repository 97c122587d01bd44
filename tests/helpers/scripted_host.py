"""A host for the browser's front end whose answers come when a test lets them.

The page's `release(kind)` lets the oldest waiting question of a held kind be answered; `held` names
the kinds that wait. What the real kernel answers is tested in JupyterLab (`browser/test_lab`).
"""

SCRIPTED_HOST = """
const N = window.nLatents ?? 200;
const PIECES = ["1945", " war", "<b>bold</b>", " the", " May"];
window.held = new Set();
window.waiting = [];
window.watched = [];
window.release = (kind) => {
  const n = window.waiting.findIndex((one) => one.kind === kind);
  window.waiting.splice(n, 1)[0].go();
};
const answer = (kind, make) => new Promise((resolve, reject) => {
  const go = () => { try { resolve(make()); } catch (error) { reject(error); } };
  if (window.held.has(kind)) window.waiting.push({ kind, go });
  else go();
});
const column = (make) => Float32Array.from({ length: N }, (_, n) => make(n));
const dead = (n) => Number(n % 10 === 9);
const columns = {
  density: column((n) => (dead(n) ? 0 : ((n * 7919) % N) / N / 10 + 1e-6)),
  max: column((n) => (dead(n) ? 0 : 1 + ((n * 104729) % N) / 100)),
  concentration: column((n) => (dead(n) ? NaN : ((n * 31) % 100) / 100)),
  dead: column(dead),
  revived: column((n) => Number(n % 50 === 0)),
};
const first = (n) => (dead(n) ? -1 : n % 4);
const types = Int32Array.from({ length: 2 * N }, (_, place) => (place % 2 ? -1 : first(place / 2)));
const promoted = Int32Array.from({ length: 3 * N }, () => 4);
const table = {
  n: N, columns, flags: ["dead", "revived"], labels: { density: "share of tokens" },
  tokens: { types: { width: 2, ids: types }, promoted: { width: 3, ids: promoted } },
  texts: Object.fromEntries(PIECES.map((text, id) => [id, text])),
};
window.twinned = new Set([1]); // SAEs whose table has a column for twins
const twin = column((n) => (n % 100) / 100);
const tableOf = (subject) =>
  twinned.has(subject) ? { ...table, columns: { ...columns, twin } } : table;
const about = (subject) => ({
  name: `SAE ${subject}`, n_latents: N, n_dead: N / 10, n_tokens: 1000, source: "test",
  reference: 2, relatives: 2, facts: { l0: 3 }, titles: { l0: "L0" },
  warnings: subject ? ["a warning"] : [],
});
const context = {
  title: "a page", position: 1, peak: 1, tokens: ["In", " May", " 1945"], activations: [null, 3, 1],
};
const view = (latent) => ({
  latent,
  facts: { dead: dead(latent), density: 0.01, max: 4, mean: 2, n_fired: 10, n_types: 2,
           concentration: 0.5, revived: false },
  histogram: { edges: [0.1, 1, 10], counts: [3, 7] },
  contexts: { top: [context], middle: [], low: [], off: [] },
  types: [{ text: " May", count: 2, mean: 1.5 }],
  promoted: [{ text: " June", value: 3 }], suppressed: [],
  nearest: [{ latent: 1, value: 0.5 }], companions: [],
});
const host = {
  live: true,
  subjects: [{ name: "SAE 0" }, { name: "SAE 1" }],
  state: window.state ?? {},
  open: (subject) => answer("open", () => ({ about: about(subject), table: tableOf(subject) })),
  latent: (subject, latent) => answer("latent", () => view(latent)),
  text: (subject, text, latent) => answer("text", () => {
    if (!text) throw new Error("text = '': no tokens");
    const tokens = text.split(" ");
    return {
      tokens, classes: tokens.map((_, n) => (n ? "ordinary" : "first")),
      missed: tokens.map(() => 0.25), codes: tokens.map((_, n) => (n ? n : null)),
      latents: tokens.map((_, n) => (n ? [{ latent: 10 + n, code: 0.5, score: 4 }] : [])),
    };
  }),
  steer: (subject, asked) => answer("steer", () => ({
    before: " quiet", after: ` loud ${asked.latent}`, kl: 0.5,
    next_tokens: [{ token: " loud", before: 0.1, after: 0.6 }],
  })),
  twins: (subject, latent) => answer("twins", () => {
    twinned.add(subject);
    if (latent === 5) return [];
    return [{ subject: 1, name: "SAE 1", latent: 4, cosine: 0.9, jaccard: null, mutual: true }];
  }),
  ablate: (subject, latent) => answer("ablate", () => ({ delta_ce: -0.01, n_contexts: 8 })),
  saveNote: () => answer("note", () => null),
  export: (subject, latents, format) => answer("export", () => ({ text: `${latents.length}` })),
  watch: (state) => window.watched.push(state),
  listen: (follow) => { window.follow = follow; },
};
window.browser = mount(document.getElementById("root"), host);
"""
