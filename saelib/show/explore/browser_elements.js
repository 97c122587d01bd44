/**
 * Elements, numbers and tokens as the browser shows them.
 *
 * The browser is these files joined in the order of `frontend.SCRIPTS`, one module without
 * dependencies. Texts of documents go in as text nodes; nothing is fetched, nothing evaluated.
 */

const LONGEST = 60; // characters of a token in a list; a context shows it whole
const HOT = 0.9; // share of full colour from which black ink contrasts more in either theme
const REASONS = {
  first: "first token of its text: SAEs were not trained there",
  sink: "a sink, a token of huge norm: SAEs were not trained there",
};

/** An element; "on…" are listeners, texts become text nodes, null is left out. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = `sae-${value.split(" ").join(" sae-")}`;
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An element of a picture. */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function faint(...children) {
  return el("p", { class: "faint" }, children);
}

/** A part of a page under a title; null where it has nothing. */
function part(title, ...children) {
  if (children.every((child) => child === null)) return null;
  return el("section", { class: "part" }, el("h4", {}, title), children);
}

function button(label, action, properties = {}) {
  return el("button", { type: "button", onclick: action, ...properties }, label);
}

function option(value, label, selected) {
  return el("option", { value: String(value), selected }, label);
}

function field(label, control) {
  return el("label", { class: "field" }, el("span", {}, label), control);
}

/** A table; `numeric` says which columns stand right. */
function grid(titles, rows, numeric) {
  const shown = (tag, cells) =>
    cells.map((cell, n) => el(tag, { class: numeric[n] ? "number" : "cell" }, cell));
  const head = el("tr", {}, shown("th", titles));
  const body = rows.map((cells) => el("tr", {}, shown("td", cells)));
  return el(
    "div",
    { class: "wide" },
    el("table", {}, el("thead", {}, head), el("tbody", {}, body)),
  );
}

/** Whether an element of a form has the keys to itself. */
function isTyping(target) {
  return target instanceof HTMLElement && ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName);
}

// -- numbers

function isMissing(value) {
  return value === null || value === undefined || Number.isNaN(value);
}

/** A number in three digits, with a true minus; a dash where it is not defined. */
function digits(value) {
  if (isMissing(value)) return "–";
  return plainDigits(value).replace(/^-/, "−").replace("e-", "e−");
}

function plainDigits(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1);
  return size >= 999.5 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
}

/** A number without zeros at its end. */
function short(value) {
  return digits(value)
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "");
}

/** A share as a percentage; in two digits where it is tiny, so that it fits a column. */
function percent(value) {
  if (isMissing(value)) return "–";
  const share = 100 * value;
  const isTiny = share > 1e-3 && share < 0.01;
  return `${isTiny ? share.toPrecision(2) : digits(share)} %`;
}

/** A count with its noun: "1 token", "2 tokens". */
function counted(n, noun) {
  return `${digits(n)} ${noun}${n === 1 ? "" : "s"}`;
}

// -- tokens

/** A token as a list shows it: line breaks and outer spaces visible, cut where it is long. */
function visible(text) {
  const whole = text.replace(/\n/g, "↵").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  const letters = [...whole.slice(0, 4 * LONGEST)];
  if (!letters.length) return "∅";
  return letters.length > LONGEST ? `${letters.slice(0, LONGEST).join("")}…` : whole;
}

function quoted(text) {
  return `‘${visible(text)}’`;
}

function word(text) {
  return el("span", { class: "word", dir: "auto" }, visible(text));
}

/**
 * The tokens of a text, each a span.
 * `tokens`: [{text, share, title, marked}]; share of full colour, or null for a token left out.
 */
function tokenSpans(tokens, properties = () => ({})) {
  return tokens.map(({ text, share, title, marked }, n) => {
    const kinds = ["token"];
    if (share === null) kinds.push("grey");
    else if (share > 0) kinds.push("fires");
    if (share >= HOT) kinds.push("hot");
    if (marked) kinds.push("peak");
    const letters = text === "" ? "·" : text.replace(/\n/g, "↵\n");
    const span = el("span", { class: kinds.join(" "), title, ...properties(n) }, letters);
    if (share > 0) span.style.setProperty("--share", `${Math.round(100 * Math.min(share, 1))}%`);
    return span;
  });
}

/** What the colours mean; `reference` is the activation in full colour. */
function legend(reference, words) {
  return el(
    "div",
    { class: "legend faint" },
    el("span", { class: "ramp", "aria-hidden": "true" }),
    el("span", {}, `0 to ${digits(reference)} or more.${words ? ` ${words}` : ""}`),
  );
}
