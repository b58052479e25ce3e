// The page: which profiles are chosen, and what is shown of them.
import { drawIcicle } from "./icicle.js";
import { drawMemory, peakOf } from "./memory.js";
import { drawTable } from "./operators.js";
import { byId, bytes, change, counted, difference, drawn, element, milliseconds, percent, time, unpack } from "./show.js";

const NONE = "nothing";
const NOT_TIMED = "These two were not timed in turns: a difference between two recordings may be the machine's.";
const { colors, profiles } = JSON.parse(byId("profiles").textContent);
const readable = profiles.filter((profile) => !profile.error).map(unpack);
const listed = readable.some(({ again }) => !again) ? readable.filter(({ again }) => !again) : readable;
const state = { first: null, second: null, clock: "cpu", focus: "", sort: null };

const titled = ({ name, model }) => (model ? `${name}: ${model}` : name);
const mixed = (color, share) => `color-mix(in oklab, ${color} ${Math.round(100 * share)}%, var(--card))`;
const step = (profile) => profile.root.total[state.clock];

// --- the tooltip ------------------------------------------------------------------------------------------------------------------

const leave = () => { byId("hover").hidden = true; };

function say(content, x, y) {
  const box = byId("hover");
  box.replaceChildren(...content);
  box.hidden = false;
  box.style.left = `${Math.max(4, Math.min(x, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${y + box.offsetHeight > innerHeight ? Math.max(4, y - box.offsetHeight - 34) : y}px`;
}

const list = (pairs) => element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));

function describe(node, profile, other) {
  const { clock } = state, pairs = [
    ["total", `${time(node.total[clock])}, ${percent(node.total[clock] / step(profile))} of the recording`],
    ["own", `${time(node.own[clock])}, ${percent(node.own[clock] / step(profile))} of the recording`],
    ["calls", counted(node.calls)],
  ];
  if (other) {
    const twin = other.calls.get(node.path);
    pairs.push([`in ${other.name}`, twin ? time(twin.total[clock]) : "no such call"]);
    if (twin) pairs.push([`against ${other.name}`, changeOf(node, twin).words]);
  }
  return [element("b", {}, node.name), list(pairs), ...(node.note ? [element("p", {}, node.note)] : [])];
}

// --- calls ------------------------------------------------------------------------------------------------------------------------

const changeOf = (node, twin) => change(node.total[state.clock], twin?.total[state.clock]);

function plainLook(profile) {
  return (node) => {
    const share = node.total[state.clock] ? node.own[state.clock] / node.total[state.clock] : 0;
    return { fill: node.kind === "frame" ? mixed("var(--soft)", 0.2 + 0.25 * share) : mixed(profile.color, 0.2 + 0.4 * share) };
  };
}

function comparedLook(other) {
  return (node) => {
    const twin = other.calls.get(node.path), { mark, words, color, strength } = changeOf(node, twin);
    return twin ? { fill: mixed(colors[color], 0.2 + 0.5 * strength), mark: mark && `${mark}${words}` } : { fill: "var(--card)", mark: "new", alone: true };
  };
}

function showCalls() {
  const { first, second, clock, focus } = state, shown = [[first, second, "first"], [second, first, "second"]];
  const spans = [first, second].map((profile) => profile?.calls.get(focus)?.total[clock] ?? 0);
  for (const [profile, other, place] of shown) {
    const title = byId(`icicle-${place}-title`), into = byId(`icicle-${place}`);
    title.hidden = into.hidden = !profile;
    if (!profile) continue;
    title.replaceChildren(swatch(profile), titled(profile), element("small", {}, facts(profile)));
    const node = profile.calls.get(focus);
    if (!node || !node.total[clock]) { into.replaceChildren(element("p", { class: "hint" }, `No such call in ${profile.name}.`)); continue; }
    drawIcicle(into, node, clock, Math.max(...spans), place === "second" ? comparedLook(first) : plainLook(profile), {
      enter: (at, bar) => { const box = bar.getBoundingClientRect(); say(describe(at, profile, other), box.left + Math.min(20, box.width / 2), box.bottom + 6); },
      leave,
      zoom: (at) => zoom(at?.path ?? "", place),
    });
  }
  byId("colors").replaceChildren(...(second ? legend() : ["The fuller the colour, the more of the time is the call's own; modules and functions are grey."]));
}

function legend() {
  const key = (color, words) => [element("i", { class: "key", style: `background: ${color}` }), words];
  return [
    `The second profile is coloured by its change against the first, call by call:`,
    ...key(colors.better, "▼ less time,"), ...key(colors.same, "within 5%,"), ...key(colors.worse, "▲ more time; dashed: not in the first."),
  ];
}

function swatch({ color }) { return element("i", { style: `background: ${color}` }); }

function facts(profile) {
  const { clock, first, second } = state, twin = profile === second ? first.root : null;
  const against = twin ? ` (${changeOf(profile.root, twin).words} against ${first.name})` : "";
  const turns = second && (first.beside === second.name || second.beside === first.name) ? " in turns with the other" : "";
  return `${time(step(profile))} of ${clock.toUpperCase()} time recorded${turns}${against}, in ${profile.runtime}`;
}

function zoom(path, place) {
  state.focus = path;
  leave();
  showCalls();
  byId(`icicle-${place}`).querySelector("g:not(.above)")?.focus({ preventScroll: true });
}

// --- operators --------------------------------------------------------------------------------------------------------------------

const rowsOf = (profile) => new Map(profile.operators.map((row) => [row.name, row]));
const named = (row) => [row.name, ...(row.note ? [element("small", {}, ` ${row.note}`)] : [])];

function showOperators() {
  const { first, second } = state;
  byId("share").hidden = Boolean(second);
  const [columns, rows] = second ? comparedOperators(first, second) : plainOperators(first);
  const draw = (sort) => { state.sort = sort; drawTable(byId("operators"), columns, rows, sort, draw); };
  draw(state.sort ?? { by: second ? columns.length - 1 : 1, down: true });
}

function plainOperators(profile) {
  const { clock } = state, whole = profile.operators.reduce((sum, row) => sum + row.own[clock], 0) || 1;
  const bar = (row, cell) => {
    cell.classList.add("bar");
    return [element("i", { style: `width: ${(90 * row.own[clock]) / whole}px; background: ${profile.color}` }), percent(row.own[clock] / whole)];
  };
  return [
    [
      { title: "Operator", value: (row) => row.name, show: named },
      { title: "own, ms", value: (row) => row.own[clock], show: (row) => milliseconds(row.own[clock]) },
      { title: "share of all own time", value: (row) => row.own[clock], show: bar },
      { title: "total, ms", value: (row) => row.total[clock], show: (row) => milliseconds(row.total[clock]) },
      { title: "calls", value: (row) => row.calls, show: (row) => counted(row.calls) },
    ],
    profile.operators.filter((row) => row.total[clock]),
  ];
}

function comparedOperators(first, second) {
  const { clock } = state, [before, after] = [rowsOf(first), rowsOf(second)];
  const rows = [...new Set([...before.keys(), ...after.keys()])].map((name) => {
    const [a, b] = [before.get(name), after.get(name)];
    return { name, a, b, own: [a?.own[clock] ?? 0, b?.own[clock] ?? 0] };
  });
  const column = (number, profile, row) => ({
    title: `own in ${profile.name}, ms`, value: ({ own }) => own[number], show: (each) => (each[row] ? milliseconds(each.own[number]) : "–"),
  });
  const marked = ({ own: [a, b] }) => {
    const { mark, words, color, strength } = change(b, a);
    const background = mixed(colors[color], color === "same" ? 0 : 0.2 + 0.4 * strength);
    return element("span", { class: "mark", style: `background: ${background}` }, `${mark} ${b ? words : "gone"}`);
  };
  return [
    [
      { title: "Operator", value: ({ name }) => name, show: ({ name }) => name },
      column(0, first, "a"), column(1, second, "b"),
      { title: "calls", value: ({ a, b }) => (b ?? a).calls, show: ({ a, b }) => (a?.calls === b?.calls ? counted(a.calls) : `${a ? counted(a.calls) : "–"} → ${b ? counted(b.calls) : "–"}`) },
      { title: "change", value: ({ own: [a, b] }) => (a ? b / a : Infinity), show: marked },
      { title: "difference, ms", value: ({ own: [a, b] }) => Math.abs(b - a), show: ({ own: [a, b] }) => difference(b - a) },
    ],
    rows.filter(({ own }) => own[0] || own[1]),
  ];
}

// --- memory -----------------------------------------------------------------------------------------------------------------------

function showMemory() {
  const { first, second, clock } = state, into = byId("memory");
  const chosen = [first, second].filter(Boolean);
  const curves = chosen.flatMap((profile, number) =>
    Object.entries(profile.memory).filter(([device]) => (device === "CPU") === (clock === "cpu")).map(([device, points]) => ({
      name: `${profile.name}${device === "CPU" ? "" : `, ${device}`}`, color: profile.color, dashed: number > 0, points, phases: profile.phases,
    })),
  );
  const without = chosen.filter((profile) => !curves.some(({ name }) => name.startsWith(profile.name)));
  const note = without.map(({ name, runtime }) => `${name} has no allocations in its trace: ${runtime === "torch" ? "record it with profile_memory=True" : `${runtime} does not tell them`}.`);
  if (curves.length) drawMemory(into, curves, { say: (lines, x, y) => say([list(lines)], x + 10, y + 40), leave });
  else into.replaceChildren();
  const keys = curves.map((curve) => {
    const line = drawn("svg", { width: 26, height: 8, style: "display: inline-block; width: 26px; vertical-align: 2px; margin-right: 6px" });
    line.append(drawn("path", { d: "M0 4H26", stroke: curve.color, "stroke-width": 2, ...(curve.dashed ? { "stroke-dasharray": "6 3" } : {}) }));
    return element("span", { style: "margin-right: 20px" }, line, peakOf(curve));
  });
  into.append(element("p", { class: "hint" }, ...keys, note.join(" ")));
}

// --- what is chosen ---------------------------------------------------------------------------------------------------------------

function show() {
  const { first, second } = state;
  byId("ratio").hidden = !second;
  byId("ratio").textContent = second ? second.ratios[first.name] ?? NOT_TIMED : "";
  byId("notice").hidden = !second || first.runtime === second.runtime;
  byId("notice").textContent = second ? `${first.name} ran in ${first.runtime} and ${second.name} in ${second.runtime}: their operators have other names and other borders, so only the whole compares.` : "";
  const onGpu = [first, second].some((profile) => profile?.root.total.gpu);
  byId("clock-field").hidden = !onGpu;
  if (!onGpu) state.clock = "cpu";
  showCalls();
  showOperators();
  showMemory();
  document.documentElement.dataset.ready = "true";
}

/** What was recorded of a model in turns with another one, if there is that; else its own profile. */
const inTurns = (profile, other) => readable.find(({ name, model }) => name === other?.beside && model === profile.model) ?? profile;

function choose() {
  const first = readable.find(({ name }) => name === byId("first").value);
  const second = readable.find(({ name }) => name === byId("second").value && name !== first.name) ?? null;
  state.first = inTurns(first, second);
  state.second = second && inTurns(second, first);
  state.sort = null;
  if (!state.first.calls.has(state.focus)) state.focus = "";
  history.replaceState(null, "", `#${[first, second].filter(Boolean).map(({ name }) => encodeURIComponent(name)).join("&")}`);
  show();
}

function followTheme() {
  const stored = byId("theme");
  const around = (() => { try { return top !== self ? top.document.body : null; } catch { return null; } })(); // TensorBoard's, which has a theme of its own
  const apply = () => { document.documentElement.dataset.theme = around ? (around.classList.contains("dark-mode") ? "dark" : "light") : stored.value; };
  byId("theme-field").hidden = Boolean(around);
  stored.addEventListener("change", apply);
  if (around) new MutationObserver(apply).observe(around, { attributeFilter: ["class"] });
  apply();
}

function start() {
  followTheme();
  const broken = profiles.filter(({ error }) => error).map(({ name, error }) => `${name}: ${error}`);
  byId("error").hidden = Boolean(readable.length) && !broken.length;
  byId("error").textContent = broken.join(" ") || "There is no trace here; gpt2opt run, or the notebook, writes one for each stage.";
  if (!readable.length) {
    for (const section of document.querySelectorAll("section, footer, #first-field, #second-field")) section.hidden = true;
    document.documentElement.dataset.ready = "true";
    return;
  }
  const option = (profile) => element("option", { value: profile.name }, titled(profile));
  byId("first").append(...listed.map(option));
  byId("second").append(element("option", { value: "" }, NONE), ...listed.map(option));
  const [first, second] = location.hash.slice(1).split("&").map(decodeURIComponent);
  if (listed.some(({ name }) => name === first)) byId("first").value = first;
  if (listed.some(({ name }) => name === second)) byId("second").value = second;
  byId("first-field").hidden = byId("second-field").hidden = listed.length < 2;
  for (const id of ["first", "second"]) byId(id).addEventListener("change", choose);
  for (const radio of document.querySelectorAll("[name=clock]")) radio.addEventListener("change", () => { state.clock = radio.value; show(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; show(); } });
  choose();
}

start();
