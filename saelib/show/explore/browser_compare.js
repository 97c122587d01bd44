/** Two latents side by side, and what a reader takes away. */

class ComparePage {
  constructor(browser) {
    this.browser = browser;
  }

  /** The latent beside the open one: the one asked for, else its best twin, else a neighbour. */
  get other() {
    const { state, record } = this.browser;
    const twin = record?.twins?.find(({ subject }) => !isMissing(subject));
    if (!state.compare && twin) return { subject: twin.subject, latent: twin.latent };
    const nearest = record?.nearest[0]?.latent ?? state.latent;
    return state.compare ?? { subject: state.subject, latent: nearest };
  }

  draw() {
    const { browser, other } = this;
    const subjects = browser.host.subjects.map(({ name }, n) =>
      option(n, name, n === other.subject),
    );
    const picker = el("select", { "aria-label": "other SAE" }, subjects);
    const number = el("input", {
      type: "number",
      min: "0",
      value: String(other.latent),
      "aria-label": "other latent",
    });
    const go = () => browser.compareWith(Number(picker.value), Number(number.value));
    number.addEventListener("keydown", (event) => event.key === "Enter" && go());
    this.sides = el("div", { class: "sides" });
    const controls = [
      browser.host.subjects.length > 1 ? picker : null,
      number,
      button("compare", go, { "data-action": "compare" }),
    ];
    const title = `Latent ${browser.state.latent} beside another`;
    browser.show(el("h3", {}, title), el("div", { class: "fields" }, controls), this.sides);
    this.fill(other);
  }

  async fill(other) {
    const { browser } = this;
    const answer = await browser.ask("compare", async () => {
      const { about } = await browser.host.open(other.subject);
      checkLatent(other.latent, about, "that SAE");
      return { about, view: await browser.host.latent(other.subject, other.latent) };
    });
    if (!answer || browser.state.view !== "compare") return;
    const both = [{ about: browser.about, view: browser.record }, answer];
    this.sides.replaceChildren(...both.map(({ about, view }) => this.side(view, about)));
  }

  side(view, about) {
    const name = el("span", { class: "faint" }, ` ${about.name}`);
    const title = el("h4", {}, `Latent ${view.latent}`, name);
    const parts = latentParts(view, about, true);
    return el("div", { class: "side", "data-compared": String(view.latent) }, title, parts);
  }
}

/** Refuse a number that no latent has. */
function checkLatent(latent, about, sae) {
  if (Number.isInteger(latent) && latent >= 0 && latent < about.n_latents) return;
  const last = digits(about.n_latents - 1);
  throw new Error(`There is no latent ${latent}: ${sae} has the latents 0 to ${last}.`);
}

/** The listed latents as files, and a link to what is seen. */
class KeepPage {
  constructor(browser) {
    this.browser = browser;
  }

  draw() {
    const { browser } = this;
    const formats = [
      ["csv", "table (CSV)"],
      ["json", "JSON, a file per latent"],
      ["link", "a line that reopens it"],
    ];
    const offered = browser.host.live ? formats : [["link", "a link to this view"]];
    const save = ([format, label]) =>
      button(label, () => this.keep(format), { "data-export": format });
    this.result = el("p", { class: "text", role: "status" });
    const listed = counted(browser.table.order.length, "latent");
    const left = `${listed}, as the search and the limits leave them, in the table’s order.`;
    browser.show(
      el("h3", {}, "Keep the selection"),
      browser.host.live ? el("p", {}, left) : null,
      el("div", { class: "fields" }, offered.map(save)),
      this.result,
    );
  }

  async keep(format) {
    const { browser } = this;
    const latents = browser.table.order.map((row) => browser.data.latentOf(row));
    const question = (subject) => browser.host.export(subject, latents, format, browser.state);
    const kept = await browser.ask("export", question);
    if (!kept) return;
    this.result.textContent = kept.path ? `written: ${kept.path}` : kept.text;
    if (kept.text && (await copied(kept.text))) browser.say("copied");
  }
}

/** Whether a text could be put on the clipboard: some pages may not. */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
