// From numbers and tokens to elements. Nothing here keeps a state.

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function drawn(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

export const digits = (value, count = 3) =>
  value.toLocaleString("en", { maximumSignificantDigits: count });
const two = (value) => value.toLocaleString("en", { minimumSignificantDigits: 2, maximumSignificantDigits: 2 });
export const seconds = (value) => (value < 1 ? `${digits(1000 * value, 2)} ms` : `${digits(value, 2)} s`);
export const percent = (share) => (share >= 0.9995 ? (100 * share).toFixed(2) : share < 0.001 ? (100 * share).toFixed(3) : (100 * share).toFixed(1)) + "%";
export const megabytes = (bytes) => (bytes == null ? "not measured" : digits(bytes / 1e6) + " MB");
export const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
/** Tokens per second; null over 4 tokens or fewer, which tell little. */
export const rate = (tokens, duration) => (tokens > 4 && duration ? tokens / duration : null);
export const tokensPerSecond = (found) => (found ? `${digits(found)} tokens/s` : "–");

/** What a precision costs: the measured figures, each with its interval. */
export function showCost(into, precision, cost, error) {
  into.replaceChildren();
  if (error) return into.append(error);
  if (!cost) return into.append("Its cost is measured when it is loaded for the first time.");
  if (cost.kl_nats != null) {
    const [low, high] = cost.kl_interval ?? [null, null];
    into.append(
      `${precision} costs `, element("b", {}, two(cost.kl_nats)), " nats of KL per token",
      low == null ? "" : `, 95% interval ${two(low)} to ${two(high)}`, ".",
    );
    if (low != null) into.append(drawInterval(cost.kl_nats, low, high));
    const same = cost.same_top_interval;
    into.append("Same first choice: ", element("b", {}, percent(cost.same_top)), same ? ` (${percent(same[0])} to ${percent(same[1])})` : "", ".");
  } else if (precision === "fp32") {
    into.append("FP32 is the reference: it costs nothing.");
  } else {
    into.append("Its cost was not measured: this folder has no FP32 model to compare with.");
  }
  if (cost.weight_bytes != null)
    into.append(element("br"), `${megabytes(cost.weight_bytes)} of weights; serving it alone peaks at ${megabytes(cost.peak_rss_bytes)}.`);
  if (cost.tokens)
    into.append(element("details", {}, element("summary", {}, `Measured on ${cost.tokens.toLocaleString("en")} tokens of held-out text`), cost.text));
}

/** A point and its interval on an axis from 0 to the interval's end. */
function drawInterval(value, low, high) {
  const svg = drawn("svg", { viewBox: "0 0 260 30", role: "img", "aria-label": `${value}, interval ${low} to ${high}` });
  const x = (at) => 4 + (248 * at) / (high * 1.1);
  svg.append(
    drawn("line", { x1: 4, x2: 252, y1: 12, y2: 12, stroke: "var(--line)" }),
    drawn("line", { x1: x(low), x2: x(high), y1: 12, y2: 12, stroke: "var(--accent)", "stroke-width": 5, "stroke-linecap": "round", opacity: 0.45 }),
    drawn("circle", { cx: x(value), cy: 12, r: 5, fill: "var(--accent)" }),
    drawn("text", { x: 4, y: 28, fill: "var(--soft)", "font-size": 10 }, "0"),
    drawn("text", { x: x(high), y: 28, fill: "var(--soft)", "font-size": 10, "text-anchor": "middle" }, two(high)),
  );
  return svg;
}

export const place = (token) => `${percent(token.probability)}, ${token.rank === 1 ? "the most probable" : token.rank ? `number ${token.rank}` : "below the first six"}`;

/** What a token was chosen from: its own probability, and the most probable others. */
export function showHover(into, tokens) {
  into.replaceChildren();
  for (const token of tokens) {
    into.append(element("div", { class: "chosen" }, place(token)));
    const others = token.others ?? []; // an old text may have given them up
    const rows = [[token.piece, token.probability, true], ...others.map(([piece, p]) => [piece, p, false])].sort((a, b) => b[1] - a[1]);
    const most = rows[0][1];
    for (const [piece, probability, chosen] of rows) {
      const bar = element("i");
      bar.style.width = `${(100 * probability) / most}%`;
      into.append(element("div", { class: chosen ? "bar it" : "bar" }, element("code", {}, visible(piece)), bar, element("span", { class: "share" }, percent(probability))));
    }
    if (token.kl_nats != null) into.append(element("div", {}, `KL of this step: ${digits(token.kl_nats)} nats`));
  }
}

/** KL per step as bars on a logarithmic axis; parted: the first step with different tokens, or null. */
export function drawChart(into, steps, parted) {
  const width = Math.max(320, into.clientWidth), height = 170, left = 52, bottom = 22, top = 14;
  const positive = steps.filter((kl) => kl > 0);
  if (!positive.length) return into.replaceChildren();
  const low = Math.floor(Math.log10(Math.max(1e-9, Math.min(...positive)))), high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive))));
  const y = (kl) => top + (height - top - bottom) * (1 - (Math.log10(Math.max(kl, 10 ** low)) - low) / (high - low));
  const slot = Math.min(26, (width - left - 8) / steps.length), x = (step) => left + slot * step;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "KL divergence per token" });
  const every = Math.ceil((high - low) / 4);
  for (let power = high; power >= low; power -= every)
    svg.append(
      drawn("line", { class: "grid-line", x1: left, x2: width, y1: y(10 ** power), y2: y(10 ** power) }),
      drawn("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, power >= -3 ? String(10 ** power) : `1e${power}`),
    );
  steps.forEach((kl, step) => {
    const bar = drawn("rect", { x: x(step) + slot * 0.12, width: slot * 0.76, y: y(kl), height: Math.max(1, height - bottom - y(kl)), "data-step": step, rx: Math.min(2, slot / 5) });
    if (parted != null && step > parted) bar.classList.add("after");
    svg.append(bar);
  });
  const label = Math.max(1, Math.ceil(34 / slot / 5) * 5);
  for (let step = 0; step < steps.length; step += label)
    svg.append(drawn("text", { x: x(step) + slot / 2, y: height - 6, "text-anchor": "middle" }, step + 1));
  if (parted != null && parted < steps.length) {
    const end = x(parted) > width / 2;
    svg.append(
      drawn("line", { class: "mark", x1: x(parted) + slot / 2, x2: x(parted) + slot / 2, y1: 2, y2: height - bottom }),
      drawn("text", { class: "mark-text", x: x(parted) + slot / 2 + (end ? -6 : 6), y: 11, "text-anchor": end ? "end" : "start" }, "the texts part here"),
    );
  }
  into.replaceChildren(svg);
}
