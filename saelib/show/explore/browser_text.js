/** Any text through the SAE: which latents fire on which token, and what the SAE misses. */

const LINE = "Line below a token: the share of it that the SAE does not rebuild.";

class TextPage {
  constructor(browser) {
    this.browser = browser;
    this.seen = null; // the host's answer, {subject, latent, text, …}
    this.position = null; // of the token whose latents are listed
    this.byOpenLatent = false; // what colours the tokens
  }

  draw() {
    const { browser } = this;
    if (this.seen && this.seen.subject !== browser.state.subject) this.seen = null;
    const hint = { rows: "3", "aria-label": "your text", placeholder: "type or paste any text" };
    const area = el("textarea", hint, browser.state.text);
    const read = () => this.read(area.value);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) read();
    });
    const look = button("look", read, { "data-action": "text", title: "Ctrl+Enter" });
    this.result = el("div", {});
    browser.show(el("h3", {}, "Your text"), area, look, this.result);
    if (this.seen) this.drawSeen();
    else if (browser.state.text) this.read(browser.state.text);
  }

  /** Ask for a text's latents, and for the codes of the latent that is open. */
  async read(text) {
    const { browser } = this;
    const { latent, subject } = browser.state;
    browser.change({ text });
    const seen = await browser.ask("text", () => browser.host.text(subject, text, latent));
    if (!seen) return;
    if (this.seen?.text !== text) this.position = null;
    this.seen = { subject, latent, text, ...seen };
    if (browser.state.view === "text") this.drawSeen();
  }

  isOrdinary(n) {
    return this.seen.classes[n] === "ordinary";
  }

  /** The code that colours a token: of its leading latent, or of the one that is open. */
  code(n) {
    if (this.byOpenLatent) return this.seen.codes?.[n] ?? 0;
    return this.seen.latents[n][0]?.code ?? 0;
  }

  drawSeen() {
    if (this.byOpenLatent && this.seen.latent !== this.browser.state.latent) {
      this.read(this.seen.text);
      return;
    }
    const colour = this.byOpenLatent
      ? `Colour: the activation of latent ${this.seen.latent}.`
      : "Colour: the activation of each token’s leading latent.";
    this.chosen = el("div", { "aria-live": "polite" });
    this.result.replaceChildren(
      this.colourChooser(),
      el("div", { class: "text own", dir: "auto" }, this.spans()),
      legend(this.browser.about.reference, `${colour} ${LINE} Click a token for its latents.`),
      ...this.leftOut(),
      this.chosen,
    );
    if (this.position !== null) this.drawToken();
  }

  colourChooser() {
    const choices = [
      [false, "each token’s leading latent"],
      [true, `latent ${this.browser.state.latent}`],
    ];
    const options = choices.map(([value, label]) =>
      option(value, label, value === this.byOpenLatent),
    );
    const chosen = (event) => {
      this.byOpenLatent = event.target.value === "true";
      this.drawSeen();
    };
    return field("colour by", el("select", { onchange: chosen, "data-action": "colour" }, options));
  }

  spans() {
    const { seen } = this;
    const tokens = seen.tokens.map((text, n) => ({
      text,
      share: this.isOrdinary(n) ? this.code(n) / this.browser.about.reference : null,
      title: this.isOrdinary(n) ? this.missed(n) : REASONS[seen.classes[n]],
      marked: n === this.position,
    }));
    const spans = tokenSpans(tokens, (n) => ({
      tabindex: "0",
      role: "button",
      onclick: () => this.choose(n),
      onkeydown: (event) => event.key === "Enter" && this.choose(n),
    }));
    spans.forEach((span, n) => {
      span.classList.add("sae-seen");
      const share = this.isOrdinary(n) ? Math.min(seen.missed[n], 1) : 0;
      span.style.setProperty("--missed", `${Math.round(100 * share)}%`);
    });
    return spans;
  }

  missed(n) {
    return `the SAE misses ${percent(this.seen.missed[n])} of this token`;
  }

  /** A sentence for each reason why tokens are greyed. */
  leftOut() {
    return Object.entries(REASONS).flatMap(([kind, reason]) => {
      const tokens = this.seen.tokens.filter((_, n) => this.seen.classes[n] === kind);
      return tokens.length ? [faint(`Greyed: ${tokens.map(quoted).join(", ")} (${reason}).`)] : [];
    });
  }

  choose(n) {
    this.position = n;
    this.drawSeen();
    this.result.querySelectorAll(".sae-seen")[n].focus();
  }

  drawToken() {
    const { seen, position } = this;
    const title = el("h4", {}, `${quoted(seen.tokens[position])}, position ${position}`);
    if (!this.isOrdinary(position)) {
      const reason = `No latents are listed: ${REASONS[seen.classes[position]]}.`;
      this.chosen.replaceChildren(title, el("p", {}, reason));
      return;
    }
    const latents = seen.latents[position];
    const rows = latents.map((entry) => [
      this.browser.latentButton(entry.latent),
      digits(entry.code),
      digits(entry.score),
    ]);
    const missed = `The SAE misses ${percent(seen.missed[position])} of this token.`;
    const note = "Score = activation · ln(1 / density): the rarer a latent, the more it says.";
    const list = [grid(["latent", "activation", "score"], rows, [false, true, true]), faint(note)];
    const silent = [faint("No latent fires on it.")];
    this.chosen.replaceChildren(title, el("p", {}, missed), ...(rows.length ? list : silent));
  }
}
