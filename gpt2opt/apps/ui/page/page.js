import { byId, digits, drawChart, element, megabytes, seconds, showCost, showHover, tokensPerSecond } from "./show.js";
import { Stream } from "./stream.js";

const NAMES = { fp32: "FP32", w8a8: "INT8", w8: "w8", w4: "w4", "w8a8-naive": "naive" };
const STAND_IN = "bundled (instead of gpt2)";
const HINTS = {
  fp32: "32-bit floats", w8a8: "INT8 weights and activations, smoothed and gated", w8: "INT8 weights, float activations",
  w4: "INT4 weights in groups of 64, float activations", "w8a8-naive": "INT8 weights and activations, neither smoothed nor gated, for comparison",
};
const NUMBERS = ["max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "seed"];
const KEPT = [...NUMBERS, "do_sample", "stop_strings", "prompt", "model", "theme", "font-size", "family"];

let comparing = false;
let stream = null; // what is being written
let loading = null; // what is only being loaded
let answer = null; // what the texts show: {ask, ready, sides, end}
const sides = [...document.querySelectorAll(".side")].map((side) => ({
  side, title: side.querySelector("h3"), text: side.querySelector(".text"), speed: side.querySelector(".speed"),
}));
const costs = new Map();

// --- what is chosen ---------------------------------------------------------------------------------------------------------------

const model = () => byId("model").value;
const chosen = (group) => document.querySelector(`input[name="${group}"]:checked`).value;
const precisions = () => (comparing ? [chosen("left"), chosen("precision")] : [chosen("precision")]);

function settings() {
  const found = { do_sample: byId("do_sample").value === "true" };
  found.stop_strings = byId("stop_strings").value.split("\n").filter((line) => line);
  for (const name of NUMBERS) {
    const field = byId(name);
    if (!field.value || Number.isNaN(field.valueAsNumber)) throw new Error(`${field.parentNode.firstChild.textContent.trim()}: expected a number`);
    found[name] = field.valueAsNumber;
  }
  return found;
}

function fillToggle(id, precision, known) {
  byId(id).replaceChildren(
    ...Object.keys(NAMES).filter((name) => known.includes(name)).map((name) => {
      const radio = element("input", { type: "radio", name: id, value: name });
      radio.checked = name === precision;
      return element("label", { title: `${name}: ${HINTS[name]}` }, radio, NAMES[name]);
    }),
  );
}

async function showChosenCost() {
  const [name, precision] = [model(), chosen("precision")];
  const reply = await fetch(`cost?${new URLSearchParams({ model: name, precision })}`).catch(() => null);
  const { cost, error } = reply ? await reply.json() : { cost: null };
  if (name === model() && precision === chosen("precision")) showCost(byId("cost"), NAMES[precision] === "FP32" ? "fp32" : NAMES[precision], cost, error);
}

// --- streams ----------------------------------------------------------------------------------------------------------------------

function say(text) {
  byId("error").textContent = text ?? "";
  byId("error").hidden = !text;
}

function showProgress(event) {
  byId("progress").hidden = !event;
  if (!event) return;
  const bar = byId("progress").querySelector("progress");
  bar.value = Math.max(0, event.step - 1) / event.steps + 0.5 / event.steps;
  const since = performance.now();
  const line = byId("progress").querySelector("span");
  const text = event.steps > 1 && event.step ? `${event.step} of ${event.steps}: ${event.text}` : event.text;
  clearInterval(showProgress.timer);
  const tick = () => (line.textContent = `${text} … ${Math.round((performance.now() - since) / 1000)} s`);
  tick();
  showProgress.timer = setInterval(tick, 500);
}

function showReady(event) {
  clearInterval(showProgress.timer);
  showProgress(null);
  byId("loaded").textContent = `${event.name === "bundled" ? STAND_IN : event.name}, ${NAMES[event.precision]} is loaded`;
  showChosenCost();
}

function load() {
  if (loading) return;
  say();
  const wanted = precisions();
  const next = () => {
    if (!wanted.length) return void (loading = null);
    loading = new Stream({ ask: "load", model: model(), precisions: [wanted.shift()] }, (event) => {
      if (event.event === "progress") showProgress(event);
      if (event.event === "ready") showReady(event);
      if (event.event === "error") {
        loading = null;
        clearInterval(showProgress.timer);
        showProgress(null);
        say(event.text);
      }
      if (event.event === "end") next();
    });
  };
  next();
}

function generate(prompt) {
  if (stream) return;
  say();
  let ask;
  try {
    ask = { ask: comparing ? "compare" : "generate", model: model(), precisions: precisions(), prompt, settings: settings(), truncate: byId("truncate").checked };
  } catch (error) {
    return say(error.message);
  }
  if (!prompt) return say("The prompt is empty: write at least a word.");
  answer = { ask, ready: [], sides: precisions().map(() => []), end: null };
  showAnswer();
  stream = new Stream(ask, receive);
  showButtons();
}

function receive(event) {
  if (event.event === "progress") showProgress(event);
  if (event.event === "ready") {
    answer.ready.push(event);
    showReady(event);
  }
  if (event.event === "token") {
    answer.sides[event.side].push(event);
    addToken(event.side, answer.sides[event.side].length - 1);
    showSpeed(event.side);
    if (comparing) redraw();
  }
  if (event.event === "end" || event.event === "error") {
    stream = null;
    clearInterval(showProgress.timer);
    showProgress(null);
    if (event.event === "error") say(event.text);
    else answer.end = event;
    finish();
  }
}

function finish() {
  for (const { text } of sides) text.classList.remove("writing");
  answer.sides.forEach((_, side) => showSpeed(side));
  if (comparing) redraw();
  showButtons();
  keep();
}

// --- the texts --------------------------------------------------------------------------------------------------------------------

function showAnswer() {
  answer?.sides.forEach((tokens, side) => {
    const { title, text, speed } = sides[side];
    title.textContent = comparing ? NAMES[answer.ask.precisions[side]] : "";
    text.replaceChildren(element("span", { class: "prompt" }, answer.ask.prompt));
    text.classList.toggle("writing", !answer.end);
    speed.replaceChildren();
    tokens.forEach((_, index) => addToken(side, index));
    if (tokens.length) showSpeed(side);
  });
  if (!answer) for (const { title, text, speed } of sides) for (const part of [title, text, speed]) part.replaceChildren();
  for (const { text } of sides) if (!answer) text.classList.remove("writing");
  redraw();
}

/** Tokens that gave no text yet, such as the first half of a character, go into the span of the one that does. */
function addToken(side, index) {
  const token = answer.sides[side][index];
  const { text } = sides[side];
  const span = text.lastChild.dataset?.open ? text.lastChild : text.appendChild(element("span", { class: "token" }));
  span.dataset.tokens = span.dataset.tokens ? `${span.dataset.tokens} ${index}` : index;
  span.textContent = token.text;
  span.style.setProperty("--p", token.probability);
  if (token.text) delete span.dataset.open;
  else span.dataset.open = "yes";
  if (comparing && parted() != null) mark();
}

function parted() {
  if (!comparing || !answer || answer.sides.length < 2) return null;
  const [left, right] = answer.sides;
  const both = Math.min(left.length, right.length);
  for (let step = 0; step < both; step++) if (left[step].id !== right[step].id) return step;
  return null;
}

function mark() {
  const step = parted();
  sides.forEach(({ text }) => text.querySelectorAll(".token").forEach((span) => span.classList.toggle("parts", stepsOf(span).includes(step))));
}

const stepsOf = (span) => (span.dataset.tokens ?? "").split(" ").map(Number);

function showSpeed(side) {
  const tokens = answer.sides[side];
  const last = tokens.at(-1);
  const parts = [];
  const figure = (name, value) => parts.push(element("span", {}, `${name} `, element("b", {}, value)));
  if (last) {
    const { prompt_tokens, prefill_s, decode_s, decoded } = last.speed;
    figure("prefill", tokensPerSecond(prompt_tokens / prefill_s));
    figure("decode", tokensPerSecond(decoded && decoded / decode_s));
    figure("tokens", `${prompt_tokens} + ${tokens.length}`);
  }
  if (answer.end) {
    if (!comparing) {
      figure("waited for others", seconds(answer.end.waited_s));
      figure("RAM of the server", megabytes(answer.end.rss_bytes));
    }
    figure("ended by", last?.finish ?? "stopped");
  }
  sides[side].speed.replaceChildren(...parts);
}

const kls = () => answer.sides[0].map((token) => token.kl_nats);

let due = false;
function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    byId("distance").hidden = !comparing || !answer?.sides[0].length;
    if (!comparing || !answer?.sides[0].length) return;
    const step = parted(), [left, right] = answer.sides, steps = kls();
    drawChart(byId("chart"), steps, step);
    const mean = steps.reduce((sum, kl) => sum + kl, 0) / steps.length;
    const same = step ?? Math.min(left.length, right.length);
    const [one, two] = answer.ask.precisions.map((precision) => NAMES[precision]);
    byId("verdict").textContent =
      (step === 0 ? `${one} and ${two} part at the first token.` : `${one} and ${two} chose the same ${same} tokens${step == null ? "" : `, then part at token ${step + 1}`}.`) +
      ` Mean KL ${digits(mean)} nats per token over ${steps.length}.` + (step == null ? "" : " Paler bars stand behind the parting.");
    const ratio = (right, left) => (right > 0 && left > 0 ? (right / left).toFixed(2) : "–");
    const row = (name, value, shown) =>
      element("tr", {}, element("th", {}, name), ...[value(0), value(1)].map((found) => element("td", {}, shown(found))), element("td", {}, ratio(value(1), value(0))));
    const rate = (tokens, duration) => (tokens && duration ? tokens / duration : null);
    const speed = (side) => answer.sides[side].at(-1)?.speed ?? {};
    const cost = (side) => answer.ready[side]?.cost ?? {};
    byId("figures").replaceChildren(
      element("tr", {}, ...["", one, two, `${two} ÷ ${one}`].map((title) => element("th", {}, title))),
      row("prefill", (side) => rate(speed(side).prompt_tokens, speed(side).prefill_s), tokensPerSecond),
      row("decode", (side) => rate(speed(side).decoded, speed(side).decode_s), tokensPerSecond),
      row("weights", (side) => cost(side).weight_bytes, megabytes),
      row("peak memory, served alone", (side) => cost(side).peak_rss_bytes, megabytes),
    );
  });
}

// --- hovering ---------------------------------------------------------------------------------------------------------------------

function hover(side, span) {
  document.querySelectorAll(".at").forEach((each) => each.classList.remove("at"));
  byId("hover").hidden = !span;
  if (!span) return;
  const steps = stepsOf(span);
  span.classList.add("at");
  for (const step of comparing ? steps : []) byId("chart").querySelector(`[data-step="${step}"]`)?.classList.add("at");
  showHover(byId("hover"), steps.map((step) => answer.sides[side][step]));
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), own = byId("hover").getBoundingClientRect();
  const below = box.bottom + 8 + own.height < innerHeight;
  byId("hover").style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  byId("hover").style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - own.height - 8)}px`;
}

sides.forEach(({ text }, side) => {
  text.addEventListener("pointerover", (event) => hover(side, event.target.closest(".token")));
  text.addEventListener("pointerleave", () => hover(side, null));
  text.addEventListener("blur", () => hover(side, null));
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const tokens = [...text.querySelectorAll(".token")];
    if (!step || !tokens.length) return;
    event.preventDefault();
    const at = tokens.findIndex((span) => span.classList.contains("at"));
    hover(side, tokens[Math.max(0, Math.min(tokens.length - 1, at < 0 ? 0 : at + step))]);
  });
});
byId("chart").addEventListener("pointerover", (event) => {
  const step = event.target.dataset?.step;
  const span = step && [...sides[0].text.querySelectorAll(".token")].find((each) => stepsOf(each).includes(Number(step)));
  hover(0, span || null);
});
byId("chart").addEventListener("pointerleave", () => hover(0, null));

// --- buttons ----------------------------------------------------------------------------------------------------------------------

const written = () => answer.ask.prompt + answer.sides[0].map((token) => token.text).join("");

function showButtons() {
  const some = Boolean(answer?.end && answer.sides[0].length);
  byId("generate").disabled = Boolean(stream);
  byId("stop").disabled = !stream;
  byId("tab-write").disabled = byId("tab-compare").disabled = Boolean(stream);
  byId("again").disabled = Boolean(stream) || !answer;
  for (const id of ["go-on", "edit", "save-json", "save-text"]) byId(id).disabled = Boolean(stream) || !some;
  for (const button of document.querySelectorAll(".write")) button.hidden = comparing;
}

function save(name, type, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function exported() {
  return {
    schema: "gpt2opt.answer/1", machine: byId("machine").textContent, models: answer.ready, ...answer.ask, ended: answer.end,
    sides: answer.sides.map((tokens) => ({ text: tokens.map((token) => token.text).join(""), tokens })),
    ...(comparing ? { first_different_token: parted(), kl_nats: kls() } : {}),
  };
}

byId("generate").onclick = () => generate(byId("prompt").value);
byId("stop").onclick = () => stream?.stop();
byId("again").onclick = () => {
  if (byId("do_sample").value === "false") return say("Greedy decoding gives the same text again; choose sampling for another one.");
  byId("seed").value = (byId("seed").valueAsNumber || 0) + 1;
  generate(answer.ask.prompt);
};
byId("go-on").onclick = () => {
  byId("prompt").value = written();
  generate(byId("prompt").value);
};
byId("edit").onclick = () => {
  byId("prompt").value = written();
  byId("prompt").focus();
  byId("prompt").setSelectionRange(byId("prompt").value.length, byId("prompt").value.length);
  fit();
};
byId("save-json").onclick = () => save("gpt2opt.json", "application/json", JSON.stringify(exported(), null, 1));
byId("save-text").onclick = () =>
  save("gpt2opt.txt", "text/plain", comparing ? answer.sides.map((tokens, side) => `${NAMES[answer.ask.precisions[side]]}:\n${answer.ask.prompt}${tokens.map((token) => token.text).join("")}\n`).join("\n") : written());
byId("load").onclick = load;
byId("defaults").onclick = () => {
  for (const name of [...NUMBERS, "stop_strings"]) byId(name).value = byId(name).defaultValue;
  byId("do_sample").value = "true";
  look();
  keep();
};
byId("tab-write").onclick = () => turnTo(false);
byId("tab-compare").onclick = () => turnTo(true);

function turnTo(compare) {
  if (compare === comparing) return;
  [comparing, answer] = [compare, null];
  byId("tab-write").setAttribute("aria-selected", String(!compare));
  byId("tab-compare").setAttribute("aria-selected", String(compare));
  byId("left-field").hidden = sides[1].side.hidden = !compare;
  byId("precision-legend").textContent = compare ? "Right" : "Precision";
  if (compare && chosen("left") === chosen("precision")) {
    document.querySelector('input[name="precision"][value="w8a8"]').checked = true;
    showChosenCost();
  }
  say();
  showAnswer();
  showButtons();
}

// --- look, and what a reload keeps --------------------------------------------------------------------------------------------------

function look() {
  const root = document.documentElement;
  root.dataset.theme = byId("theme").value;
  root.style.setProperty("--text-size", `${byId("font-size").value}px`);
  root.style.setProperty("--text-family", { sans: "inherit", serif: 'Georgia, "DejaVu Serif", serif', mono: 'ui-monospace, "DejaVu Sans Mono", monospace' }[byId("family").value]);
  for (const { text } of sides) text.classList.toggle("shaded", byId("shade").checked);
  for (const field of document.querySelectorAll(".sampled input")) field.disabled = byId("do_sample").value === "false";
  fit();
}

function fit() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 2)}px`;
}

function keep() {
  localStorage.setItem("gpt2opt", JSON.stringify(Object.fromEntries(KEPT.map((id) => [id, byId(id).value]))));
  if (answer?.end) sessionStorage.setItem("gpt2opt", JSON.stringify({ comparing, answer }));
}

function restore() {
  for (const [id, value] of Object.entries(JSON.parse(localStorage.getItem("gpt2opt") ?? "{}"))) {
    const field = byId(id);
    if (!field) continue; // an older page had it
    if (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value)) field.value = value;
  }
  const kept = JSON.parse(sessionStorage.getItem("gpt2opt") ?? "null");
  if (kept?.comparing) turnTo(true);
  answer = kept?.answer ?? null;
}

for (const change of ["input", "change"])
  document.addEventListener(change, () => {
    look();
    keep();
  });
byId("model").addEventListener("change", showChosenCost);
byId("precision").addEventListener("change", showChosenCost);
addEventListener("resize", redraw);
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate(byId("prompt").value);
  if (event.key === "Escape") stream?.stop();
});

async function showState() {
  const reply = await fetch("state").catch(() => null);
  const state = reply?.ok ? await reply.json() : null;
  const streams = state?.streams ?? 0;
  byId("state").textContent = state ? `RAM ${megabytes(state.rss_bytes)} · ${streams} ${streams === 1 ? "stream" : "streams"}` : "gpt2opt does not answer";
  setTimeout(showState, document.hidden ? 5000 : 1500);
}

const facts = await (await fetch("facts")).json();
byId("model").append(...facts.models.map((name) => element("option", { value: name }, name === "bundled" ? STAND_IN : name)));
byId("model").value = facts.first.model;
byId("machine").textContent = facts.machine;
fillToggle("left", "fp32", facts.precisions);
fillToggle("precision", facts.first.precision, facts.precisions);
restore();
look();
showAnswer();
showButtons();
showChosenCost();
showState();
document.documentElement.dataset.ready = "yes";
