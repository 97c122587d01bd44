/** Steering: the model goes on with one latent changed. */

const MODES = {
  add: (most) => `adds strength × its largest activation (${most}) to its code`,
  scale: () => "multiplies its code by strength",
  clamp: (most) => `sets its code to strength × its largest activation (${most})`,
  ablate: () => "sets its code to 0",
};
const LENGTHS = [1, 200]; // tokens of a continuation
const STRENGTHS = [-5, 10]; // of the slider; the number beside it takes any
const STEERING = { mode: "add", strength: 2, prompt: "My favourite place is", n_tokens: 20 };

class SteerPage {
  constructor(browser) {
    this.browser = browser;
    this.settings = { ...STEERING };
  }

  draw() {
    const { browser, settings } = this;
    this.words = faint();
    this.result = el("div", { "aria-live": "polite" });
    const prompt = this.control(
      "prompt",
      el("textarea", { rows: "2", "aria-label": "prompt" }, settings.prompt),
    );
    const modes = Object.keys(MODES).map((name) => option(name, name, name === settings.mode));
    const [least, most] = LENGTHS;
    const length = {
      type: "number",
      min: String(least),
      max: String(most),
      value: String(settings.n_tokens),
    };
    const fields = [
      field("mode", this.control("mode", el("select", { "aria-label": "mode" }, modes))),
      ...this.strengthFields(),
      field("tokens", this.control("n_tokens", el("input", length))),
    ];
    browser.show(
      el("h3", {}, `Steer latent ${browser.state.latent}`),
      this.words,
      field("prompt", prompt),
      el("div", { class: "fields" }, fields),
      button("go on", () => this.steer(), { "data-action": "steer" }),
      this.result,
    );
    this.explain();
  }

  /** A control that keeps its value in the settings. */
  control(name, node) {
    node.addEventListener("input", () => {
      this.settings[name] = ["text", "textarea", "select-one"].includes(node.type)
        ? node.value
        : Number(node.value);
      this.explain();
    });
    return node;
  }

  strengthFields() {
    const value = String(this.settings.strength);
    const [min, max] = STRENGTHS.map(String);
    const number = el("input", { type: "number", step: "0.5", value, "data-setting": "strength" });
    const range = { type: "range", min, max, step: "0.5", value, "aria-label": "strength" };
    const slider = el("input", range);
    slider.addEventListener("input", () => (number.value = slider.value));
    number.addEventListener("input", () => (slider.value = number.value));
    this.strength = [this.control("strength", number), this.control("strength", slider)];
    return [field("strength", number), slider];
  }

  explain() {
    const { mode } = this.settings;
    for (const node of this.strength) node.disabled = mode === "ablate";
    const most = digits(this.browser.record?.facts.max);
    this.words.textContent =
      `“${mode}” ${MODES[mode](most)}, at every token but the first, and lets the model go on. ` +
      "What the SAE misses stays in the stream.";
  }

  async steer() {
    const { browser } = this;
    const question = { latent: browser.state.latent, ...this.settings };
    const steered = await browser.ask("steer", (subject) => browser.host.steer(subject, question));
    if (steered && browser.state.view === "steer") this.drawResult(steered, question.prompt);
  }

  drawResult(steered, prompt) {
    const side = (title, text) =>
      el(
        "div",
        { class: `side ${title}` },
        el("h4", {}, title),
        el("p", { class: "text", dir: "auto" }, el("span", { class: "prompt" }, prompt), text),
      );
    const moved =
      `The next token’s distribution moves by ${digits(steered.kl)} nats ` +
      "(KL divergence of after from before).";
    this.result.replaceChildren(
      el("div", { class: "sides" }, side("before", steered.before), side("after", steered.after)),
      el("p", { "data-kl": String(steered.kl) }, moved),
      this.nextTokens(steered.next_tokens),
    );
  }

  /** The next token's probabilities before and after, those that move most first. */
  nextTokens(rows) {
    const most = Math.max(...rows.flatMap((row) => [row.before, row.after]), 1e-9);
    const meter = (value, kind) => {
      const bar = el("span", { class: `meter ${kind}`, "aria-hidden": "true" });
      bar.style.width = `${(6 * value) / most}rem`;
      return el("span", { class: "metered" }, bar, el("span", { class: "faint" }, percent(value)));
    };
    const cells = rows.map((row) => [
      word(row.token),
      meter(row.before, "before"),
      meter(row.after, "after"),
    ]);
    return grid(["next token", "before", "after"], cells, [false, false, false]);
  }
}
