import { fillDecoding, NUMBERS, settings, showDecoding } from "./decoding.js";
import { byId, digits, drawChart, element, megabytes, place, rate, seconds, showCost, showHover, tokensPerSecond } from "./show.js";
import { MESSAGE_BYTES, Stream } from "./stream.js";
import * as texts from "./texts.js";

const NAMES = { fp32: "FP32", w8a8: "INT8", w8: "w8", w4: "w4", "w8a8-naive": "naive" };
const STAND_IN = "bundled (instead of gpt2)";
const HINTS = {
  fp32: "32-bit floats, the reference.", w8a8: "8-bit weights and activations, smoothed, where they cost little.",
  w8: "8-bit weights; the activations stay floats.", w4: "4-bit weights in groups of 64; the activations stay floats.",
  "w8a8-naive": "8-bit weights and activations without smoothing and gate: to see what these two are for.",
};
const KEPT = [...NUMBERS, "do_sample", "stop_strings", "truncate", "prompt", "model", "theme", "font-size", "family", "shade"];
const SAVE_EVERY_MS = 400;
const UNDOS = 20;

let comparing = false;
let answer = null; // the text that is shown, see texts.js
let loading = null; // what is only being loaded
const shown = { generate: null, compare: null }; // the text of each tab, by its id
const past = []; // what Undo goes back to
const streams = new Map(); // the texts that are being written, shown or not, by their ids
const contexts = {}; // model -> how many tokens it reads
const sides = [...document.querySelectorAll(".side")].map((side) => ({
  side, title: side.querySelector("h3"), text: side.querySelector(".text"), speed: side.querySelector(".speed"),
}));

// --- what is chosen ---------------------------------------------------------------------------------------------------------------

const model = () => byId("model").value;
const chosen = (group) => document.querySelector(`input[name="${group}"]:checked`).value;
const precisions = () => (comparing ? [chosen("left"), chosen("precision")] : [chosen("precision")]);

const kind = () => (comparing ? "compare" : "generate");
const prompt = byId("prompt");
const called = (name) => (name === "bundled" ? STAND_IN : name);

function fillToggle(id, precision, known) {
  byId(id).replaceChildren(
    ...Object.keys(NAMES).filter((name) => known.includes(name)).map((name) => {
      const radio = element("input", { type: "radio", name: id, value: name });
      radio.checked = name === precision;
      return element("label", { title: HINTS[name] }, radio, NAMES[name]);
    }),
  );
}

async function showChosenCost() {
  const [name, precision] = [model(), chosen("precision")];
  byId("precision-hint").textContent = `${NAMES[precision]}: ${HINTS[precision]}`;
  const reply = await fetch(`cost?${new URLSearchParams({ model: name, precision })}`).catch(() => null);
  const { cost, error } = reply ? await reply.json() : { cost: null };
  if (name === model() && precision === chosen("precision")) showCost(byId("cost"), NAMES[precision] === "FP32" ? "fp32" : NAMES[precision], cost, error);
}

/** Count the prompt's tokens, once nothing was typed for a moment. */
function count() {
  clearTimeout(count.timer);
  count.timer = setTimeout(async () => {
    const asked = JSON.stringify({ model: model(), precision: chosen("precision"), prompt: prompt.value });
    const fits = new Blob([asked]).size <= MESSAGE_BYTES;
    const reply = fits ? await fetch("tokens", { method: "POST", body: asked }).catch(() => null) : null;
    const tokens = reply?.ok ? (await reply.json()).tokens : null;
    if (asked !== JSON.stringify({ model: model(), precision: chosen("precision"), prompt: prompt.value })) return;
    const room = (contexts[model()] ?? Infinity) - byId("max_new_tokens").valueAsNumber;
    const over = tokens > room && !byId("truncate").checked;
    byId("count").textContent = tokens == null ? "" : `${tokens.toLocaleString("en")} ${tokens === 1 ? "token" : "tokens"}${over ? `, room for ${Math.max(0, room)}` : ""}`;
    byId("count").classList.toggle("over", over);
  }, 200);
}

// --- streams ----------------------------------------------------------------------------------------------------------------------

function say(text) {
  byId("error").textContent = (text ?? "").replace("keep its end with truncate", "let it be cut to its end, under All settings");
  byId("error").hidden = !text;
}

function showProgress(event) {
  byId("progress").hidden = !event;
  clearInterval(showProgress.timer);
  if (!event) return;
  const bar = byId("progress").querySelector("progress");
  bar.value = Math.max(0, event.step - 1) / event.steps + 0.5 / event.steps;
  const since = performance.now();
  const line = byId("progress").querySelector("span");
  const text = event.steps > 1 && event.step ? `${event.step} of ${event.steps}: ${event.text}` : event.text;
  const tick = () => (line.textContent = `${text} … ${Math.round((performance.now() - since) / 1000)} s`);
  tick();
  showProgress.timer = setInterval(tick, 500);
}

function showReady(event) {
  showProgress(null);
  byId("loaded").textContent = `${called(event.name)}, ${NAMES[event.precision]} is loaded`;
  contexts[event.model] = event.context;
  showChosenCost();
  count();
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
        showProgress(null);
        say(event.text);
      }
      if (event.event === "end") next();
    });
  };
  next();
}

/** Write a text. What the prompt holds now is kept for Undo. */
function generate(asked = prompt.value) {
  if (streams.has(answer?.id)) return;
  say();
  let ask;
  try {
    ask = { ask: kind(), model: model(), precisions: precisions(), prompt: asked, settings: settings(), truncate: byId("truncate").checked };
  } catch (error) {
    return say(error.message);
  }
  if (!asked) return say("The prompt is empty: write at least a word.");
  const parent = answer && asked === answer.ask.prompt ? answer.parent : answer && asked.startsWith(whole()) ? answer.id : null;
  remember();
  answer = texts.begin(ask, parent);
  past.at(-1).begun = shown[kind()] = answer.id;
  prompt.value = asked;
  follow(answer);
  showAll();
}

function follow(text) {
  streams.set(text.id, new Stream(text.ask, (event) => receive(text, event), text.received));
}

function receive(text, event) {
  if (!streams.has(text.id)) return; // it was deleted
  const visible = text === answer;
  if (event.event !== "lost") {
    text.received = streams.get(text.id).received;
    if (receive.lost) say();
    receive.lost = false;
  }
  if (event.event === "lost") {
    receive.lost = true;
    say("The connection to gpt2opt is lost: is it still running? What has come is kept, and the page tries again.");
  }
  if (event.event === "progress" && visible) showProgress(event);
  if (event.event === "ready") {
    text.ready.push(event);
    showReady(event);
    if (visible) showTitles();
  }
  if (event.event === "token") {
    const { speed, event: _, side, ...token } = event;
    text.speeds[side] = speed;
    text.sides[side].push(token);
    if (visible) showToken(side);
  }
  if (event.event === "end" || event.event === "error") return end(text, event);
  receive.timer ??= setTimeout(saveAll, SAVE_EVERY_MS);
}

function end(text, event) {
  streams.delete(text.id);
  text.end = event;
  showProgress(null);
  if (event.event === "error" && !text.sides.some((tokens) => tokens.length)) return refuse(text, event.text);
  if (!texts.save(text)) say("This browser has no room for more texts: delete some of those below, or they are lost with this page.");
  if (event.event === "error") say(event.text);
  showHistory();
  if (text !== answer) return;
  for (const { text } of sides) text.classList.remove("writing");
  answer.sides.forEach((_, side) => showSpeed(side));
  redraw();
  showButtons();
  showStatus(true);
}

/** Nothing came of a text: what was there before is shown again. */
function refuse(text, why) {
  texts.remove(text);
  const at = past.findLastIndex((each) => each.begun === text.id);
  const [before] = at < 0 ? [] : past.splice(at, 1);
  if (shown[text.ask.ask] === text.id) shown[text.ask.ask] = before?.shown[text.ask.ask] ?? null;
  if (before && prompt.value === text.ask.prompt) prompt.value = before.prompt;
  answer = texts.find(shown[kind()]);
  showAll();
  say(why);
}

/** Store what is being written: a reload then shows it at once, and gets the rest from the server. */
function saveAll() {
  clearTimeout(receive.timer);
  receive.timer = null;
  for (const id of streams.keys()) texts.save(texts.find(id));
  keep();
}

// --- the history of texts ---------------------------------------------------------------------------------------------------------

function remember(removed = null) {
  past.push({ comparing, shown: { ...shown }, prompt: prompt.value, removed });
  past.splice(0, past.length - UNDOS);
}

function undo() {
  const before = past.pop();
  if (!before) return;
  if (before.removed) texts.save(before.removed);
  Object.assign(shown, before.shown);
  prompt.value = before.prompt;
  turnTo(before.comparing);
}

/** Show a text of the history. The prompt becomes its prompt, unless something new was typed there. */
function show(text) {
  if (text === answer) return;
  remember();
  if (!prompt.value || prompt.value === answer?.ask.prompt) prompt.value = text.ask.prompt;
  shown[text.ask.ask] = text.id;
  turnTo(text.ask.ask === "compare");
}

function remove(text) {
  remember(text);
  streams.get(text.id)?.stop();
  streams.delete(text.id);
  texts.remove(text);
  const next = texts.versions(text).at(-1) ?? texts.find(text.parent) ?? texts.newest(text.ask.ask);
  for (const each of Object.keys(shown)) if (shown[each] === text.id) shown[each] = next?.ask.ask === each ? next.id : null;
  turnTo(comparing);
}

function showHistory() {
  const rows = texts.tree().map(({ text, depth }) => {
    const names = text.ask.precisions.map((precision) => NAMES[precision]).join(" | ");
    const said = texts.written(text).trim() || "…";
    const open = element("button", { class: "open" }, element("span", { class: "prompt" }, `${text.ask.prompt.length > 40 ? "…" : ""}${text.ask.prompt.slice(-40)}`), element("span", { class: "said" }, said.slice(0, 160)));
    const meta = element("span", { class: "meta" }, `${text.ask.model.split("/").at(-1)} ${names} · ${text.sides[0].length} tokens${text.end ? "" : ", being written"} · ${timeOf(text.at)}`);
    const gone = element("button", { class: "quiet", "aria-label": `Delete: ${said.slice(0, 40)}`, title: "Delete; Undo brings it back" }, "×");
    open.append(meta);
    if (text === answer) open.setAttribute("aria-current", "true");
    open.onclick = () => show(text);
    gone.onclick = () => remove(text);
    const row = element("li", {}, open, gone);
    row.style.setProperty("--depth", Math.min(depth, 6));
    return row;
  });
  byId("history").hidden = !rows.length;
  byId("history").querySelector("ul").replaceChildren(...rows);
}

const timeOf = (at) => {
  const today = new Date(at).toDateString() === new Date().toDateString();
  return new Date(at).toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
};

function showVersions() {
  const all = answer ? texts.versions(answer) : [];
  const at = all.indexOf(answer);
  byId("versions").hidden = all.length < 2;
  byId("versions").querySelector("span").textContent = `${at + 1} of ${all.length}`;
  for (const [id, next] of [["earlier", all[at - 1]], ["later", all[at + 1]]]) {
    byId(id).disabled = !next;
    byId(id).onclick = () => show(next);
  }
}

// --- the texts --------------------------------------------------------------------------------------------------------------------

function showAll() {
  fit();
  showAnswer();
  showButtons();
  showStatus();
  showVersions();
  showHistory();
  count();
  keep();
}

function showTitles() {
  answer?.sides.forEach((_, side) => {
    const { ask, ready } = answer;
    const { seed, temperature, do_sample } = ask.settings;
    const how = do_sample ? `sampling at ${temperature}, seed ${seed}` : "greedy";
    sides[side].title.replaceChildren(`${called(ready[side]?.name ?? ask.model)} · ${NAMES[ask.precisions[side]]}`, element("small", {}, how));
  });
}

function showAnswer() {
  hover(0, null);
  for (const { title, text, speed } of sides) for (const part of [title, text, speed]) part.replaceChildren();
  showTitles();
  sides.forEach(({ text }, side) => {
    text.classList.toggle("writing", streams.has(answer?.id));
    if (!answer?.sides[side]) return;
    text.append(element("span", { class: "prompt" }, answer.ask.prompt));
    answer.sides[side].forEach((_, index) => addToken(side, index));
    if (answer.sides[side].length) showSpeed(side);
  });
  redraw();
}

function showToken(side) {
  addToken(side, answer.sides[side].length - 1);
  showSpeed(side);
  showStatus();
  if (comparing) redraw();
}

/** What goes on; spoken: at the end, a screen reader hears the text too. */
function showStatus(spoken = false) {
  const tokens = answer?.sides[0].length;
  const parts = { text: "" };
  if (streams.has(answer?.id)) parts.text = "Writing …"; // not the count: a screen reader would read each
  else if (answer?.end) parts.text = `Done: ${tokens} ${tokens === 1 ? "token" : "tokens"}${answer.end.took_s ? ` in ${seconds(answer.end.took_s)}` : ""}`;
  if (byId("status").textContent !== parts.text) byId("status").textContent = parts.text;
  if (spoken) byId("said").textContent = answer.sides.map((_, side) => texts.written(answer, side)).join("\n");
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
  const parts = [];
  const figure = (name, value) => value && parts.push(element("span", {}, `${name} `, element("b", {}, value)));
  if (answer.speeds[side]) {
    const { prompt_tokens, prefill_s, decode_s, decoded } = answer.speeds[side];
    figure("prefill", rate(prompt_tokens, prefill_s) && tokensPerSecond(rate(prompt_tokens, prefill_s)));
    figure("decode", rate(decoded, decode_s) && tokensPerSecond(rate(decoded, decode_s)));
    figure("tokens", `${prompt_tokens} + ${tokens.length}`);
  }
  if (answer.end) {
    if (answer.end.took_s) figure("time", seconds(answer.end.took_s));
    if (!comparing && answer.end.rss_bytes) {
      figure("waited for others", seconds(answer.end.waited_s));
      figure("RAM of the server", megabytes(answer.end.rss_bytes));
    }
    figure("ended by", tokens.at(-1)?.finish ?? (answer.end.event === "error" ? "an error" : "stopped"));
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
    const speed = (side) => answer.speeds[side] ?? {};
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
  const tokens = steps.map((step) => answer.sides[side][step]);
  showHover(byId("hover"), tokens);
  if (document.activeElement === sides[side].text) byId("said").textContent = `${span.textContent}: ${tokens.map(place).join("; ")}`;
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect(), own = byId("hover").getBoundingClientRect();
  const below = box.bottom + 8 + own.height < innerHeight;
  byId("hover").style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
  byId("hover").style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - own.height - 8)}px`;
}

sides.forEach(({ text }, side) => {
  const at = (event) => hover(side, event.target.closest(".token"));
  text.addEventListener("pointerover", (event) => event.pointerType === "mouse" && at(event)); // a finger taps
  text.addEventListener("click", at);
  text.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(side, null));
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
for (const touch of ["pointerover", "click"])
  byId("chart").addEventListener(touch, (event) => {
    const step = event.target.dataset?.step;
    const span = step && [...sides[0].text.querySelectorAll(".token")].find((each) => stepsOf(each).includes(Number(step)));
    hover(0, span || null);
  });
byId("chart").addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(0, null));
document.addEventListener("click", (event) => event.target.closest(".text, #chart") || hover(0, null));

// --- buttons ----------------------------------------------------------------------------------------------------------------------

const whole = () => answer.ask.prompt + texts.written(answer);
const plain = () =>
  comparing ? answer.sides.map((_, side) => `${NAMES[answer.ask.precisions[side]]}:\n${answer.ask.prompt}${texts.written(answer, side)}\n`).join("\n") : whole();

function showButtons() {
  const writing = streams.has(answer?.id);
  const some = Boolean(!writing && answer?.sides[0].length);
  byId("generate").disabled = writing;
  byId("stop").disabled = !writing;
  byId("again").disabled = writing || !answer;
  byId("undo").disabled = !past.length;
  for (const id of ["go-on", "edit", "copy", "save-json", "save-text"]) byId(id).disabled = !some;
  for (const button of document.querySelectorAll(".write")) button.hidden = comparing;
}

function save(name, type, content) {
  const link = element("a", { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function exported() {
  return {
    schema: "gpt2opt.answer/2", machine: byId("machine").textContent, models: answer.ready, ...answer.ask, ended: answer.end,
    sides: answer.sides.map((tokens, side) => ({ text: texts.written(answer, side), speed: answer.speeds[side], tokens })),
    ...(comparing ? { first_different_token: parted(), kl_nats: kls() } : {}),
  };
}

async function copy() {
  try {
    await navigator.clipboard.writeText(plain()); // there is none on a page that came by http from another machine
  } catch {
    const field = document.body.appendChild(element("textarea", { class: "unseen" }));
    field.value = plain();
    field.select();
    document.execCommand("copy");
    field.remove();
    byId("copy").focus();
  }
  byId("copy").textContent = "Copied";
  setTimeout(() => (byId("copy").textContent = "Copy"), 1500);
}

byId("generate").onclick = () => generate();
byId("stop").onclick = () => streams.get(answer?.id)?.stop();
byId("again").onclick = () => {
  if (byId("do_sample").value === "false") return say("Greedy decoding gives the same text again; choose sampling for another one.");
  byId("seed").value = (byId("seed").valueAsNumber || 0) + 1;
  generate(answer.ask.prompt);
};
byId("go-on").onclick = () => generate(whole());
byId("edit").onclick = () => {
  remember();
  prompt.value = whole();
  prompt.focus();
  prompt.setSelectionRange(prompt.value.length, prompt.value.length);
  showAll();
};
byId("undo").onclick = undo;
byId("copy").onclick = copy;
byId("save-json").onclick = () => save("gpt2opt.json", "application/json", JSON.stringify(exported(), null, 1));
byId("save-text").onclick = () => save("gpt2opt.txt", "text/plain", plain());
byId("load").onclick = load;
byId("tab-write").onclick = () => turnTo(false);
byId("tab-compare").onclick = () => turnTo(true);

byId("tab-write").parentNode.addEventListener("keydown", (event) => {
  if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  turnTo(event.key === "Home" ? false : event.key === "End" ? true : !comparing);
  byId(comparing ? "tab-compare" : "tab-write").focus();
});

function turnTo(compare) {
  comparing = compare;
  answer = texts.find(shown[kind()]);
  if (answer && !answer.end && !streams.has(answer.id)) follow(answer);
  for (const [id, selected] of [["tab-write", !compare], ["tab-compare", compare]]) {
    byId(id).setAttribute("aria-selected", String(selected));
    byId(id).tabIndex = selected ? 0 : -1;
  }
  byId("main").setAttribute("aria-labelledby", compare ? "tab-compare" : "tab-write");
  byId("left-field").hidden = sides[1].side.hidden = !compare;
  byId("precision-legend").textContent = compare ? "Right" : "Precision";
  if (compare && chosen("left") === chosen("precision")) {
    document.querySelector('input[name="precision"][value="w8a8"]').checked = true;
    showChosenCost();
  }
  say();
  showAll();
}

// --- look, and what a reload keeps --------------------------------------------------------------------------------------------------

function look() {
  const root = document.documentElement;
  root.dataset.theme = byId("theme").value;
  root.style.setProperty("--text-size", `${byId("font-size").value}px`);
  root.style.setProperty("--text-family", { sans: "inherit", serif: 'Georgia, "DejaVu Serif", serif', mono: 'ui-monospace, "DejaVu Sans Mono", monospace' }[byId("family").value]);
  for (const { text } of sides) text.classList.toggle("shaded", byId("shade").checked);
  showDecoding();
  fit();
}

function fit() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight / 2)}px`;
}

const valueOf = (field) => (field.type === "checkbox" ? "checked" : "value");

function keep() {
  const fields = Object.fromEntries(KEPT.map((id) => [id, byId(id)[valueOf(byId(id))]]));
  localStorage.setItem("gpt2opt", JSON.stringify({ ...fields, left: chosen("left"), precision: chosen("precision") }));
  try {
    sessionStorage.setItem("gpt2opt", JSON.stringify({ comparing, shown, past }));
  } catch {
    past.splice(0, past.length / 2); // deleted texts may be large
  }
}

function restore() {
  for (const [id, value] of Object.entries(JSON.parse(localStorage.getItem("gpt2opt") ?? "{}"))) {
    const field = byId(id), radio = [...document.querySelectorAll(`input[name="${id}"]`)].find((each) => each.value === value);
    if (radio) radio.checked = true;
    else if (field && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value))) field[valueOf(field)] = value;
  }
  texts.read();
  const kept = JSON.parse(sessionStorage.getItem("gpt2opt") ?? "null");
  for (const each of Object.keys(shown)) shown[each] = (kept ? texts.find(kept.shown?.[each]) : texts.newest(each))?.id ?? null;
  past.push(...(kept?.past ?? []));
  turnTo(Boolean(kept?.comparing));
}

for (const change of ["input", "change"])
  document.addEventListener(change, () => {
    look();
    keep();
    count();
  });
byId("model").addEventListener("change", showChosenCost);
byId("precision").addEventListener("change", showChosenCost);
addEventListener("resize", redraw);
addEventListener("pagehide", saveAll);
addEventListener("storage", (event) => {
  if (!event.key || [...streams.keys()].some((id) => event.key.endsWith(id))) return;
  texts.read(event.key); // another window wrote
  showHistory();
  showVersions();
});
addEventListener("scroll", () => hover(0, null), { passive: true });
addEventListener("keydown", (event) => {
  const generates = event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey || (event.target === prompt && !event.shiftKey));
  if (generates) event.preventDefault();
  if (generates) generate();
  if (event.key !== "Escape") return;
  if (byId("hover").hidden) byId("stop").click();
  else hover(0, null);
});

function fillModels(names) {
  if (fillModels.names === names.join()) return;
  fillModels.names = names.join();
  const before = model();
  byId("model").replaceChildren(...names.map((name) => element("option", { value: name }, called(name))));
  if (names.includes(before)) byId("model").value = before;
}

async function showState() {
  const reply = await fetch("state").catch(() => null);
  const state = reply?.ok ? await reply.json() : null;
  const streams = state?.streams ?? 0;
  if (state) fillModels(state.models);
  byId("state").textContent = state ? `RAM ${megabytes(state.rss_bytes)} · ${streams} ${streams === 1 ? "stream" : "streams"}` : "gpt2opt does not answer";
  setTimeout(showState, document.hidden ? 5000 : 1500);
}

// By POST, to which a browser adds where it comes from: a page behind a proxy that was not named learns at once why nothing works.
const reply = await fetch("facts", { method: "POST" });
if (!reply.ok) {
  say(await reply.text());
  throw new Error("gpt2opt does not answer to this page");
}
const facts = await reply.json();
fillDecoding();
fillModels(facts.models);
byId("model").value = facts.first.model;
byId("machine").textContent = facts.machine;
fillToggle("left", "fp32", facts.precisions);
fillToggle("precision", facts.first.precision, facts.precisions);
restore();
look();
showChosenCost();
showState();
prompt.focus();
document.documentElement.dataset.ready = "yes";
