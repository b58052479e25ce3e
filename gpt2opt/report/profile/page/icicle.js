// A tree of calls as bars: each call above the calls that it made, as wide as the time it took.
import { drawn } from "./show.js";

const ROW = 21, MARGIN = 5, LEAST = 0.6; // px
const pen = document.createElement("canvas").getContext("2d");

/**
 * Draw the calls below `focus`, and above them the calls around it.
 * root: where the bars begin. focus: the node that spans the width; scale: µs that the width stands for.
 * look(node): {fill, mark, alone}. act: {enter(node, bar), leave(), zoom(node)}.
 */
export function drawIcicle(into, focus, clock, scale, look, act) {
  const width = Math.max(300, into.clientWidth), bars = [];
  pen.font = `12px ${getComputedStyle(into).fontFamily}`;
  const lineage = [];
  for (let node = focus.parent; node; node = node.parent) lineage.unshift(node);
  const whole = (focus.total[clock] / scale) * width;
  lineage.forEach((node, row) => bars.push({ node, x: 0, wide: whole, row, above: true }));
  const place = (node, x, row) => {
    const wide = (node.total[clock] / scale) * width;
    if (wide < LEAST) return;
    bars.push({ node, x, wide, row });
    let at = x;
    for (const child of node.children) {
      place(child, at, row + 1);
      at += (child.total[clock] / scale) * width;
    }
  };
  place(focus, 0, lineage.length);
  const height = ROW * (1 + Math.max(...bars.map((bar) => bar.row)));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "tree", "aria-label": "Calls" });
  for (const bar of bars) svg.append(drawBar(bar, look(bar.node)));
  listen(svg, bars, act);
  into.replaceChildren(svg);
}

function drawBar(bar, { fill, mark, alone }) {
  const { node, x, wide, row, above } = bar;
  const group = drawn("g", { role: "treeitem", tabindex: row ? -1 : 0, "aria-label": `${node.name}${mark ? `, ${mark}` : ""}`, class: [above && "above", alone && "alone"].filter(Boolean).join(" ") });
  const box = drawn("rect", { x, y: row * ROW, width: Math.max(LEAST, wide), height: ROW - 1, rx: Math.min(3, wide / 4) });
  box.style.fill = fill;
  group.append(box);
  group.append(drawn("text", { x: x + MARGIN, y: row * ROW + 14.5 }, fitted(node.name.replace(/^aten::/, ""), mark, wide - 2 * MARGIN)));
  bar.group = group;
  return group;
}

/** A name and its mark, or as much of the name as there is room for. */
function fitted(name, mark, room) {
  const fits = (text) => pen.measureText(text).width <= room;
  if (mark && fits(`${name} ${mark}`)) return `${name} ${mark}`;
  if (fits(name)) return name;
  let length = name.length - 1;
  while (length && !fits(`${name.slice(0, length)}…`)) length -= 1;
  return length > 1 ? `${name.slice(0, length)}…` : "";
}

function listen(svg, bars, act) {
  const barOf = (target) => bars.find((bar) => bar.group === target.closest("g"));
  const rows = (row) => bars.filter((bar) => bar.row === row).sort((a, b) => a.x - b.x);
  const on = (event, does) => svg.addEventListener(event, (at) => { const bar = barOf(at.target); if (bar) does(bar, at); });
  on("mouseover", (bar) => act.enter(bar.node, bar.group));
  on("focusin", (bar) => act.enter(bar.node, bar.group));
  svg.addEventListener("mouseleave", act.leave);
  svg.addEventListener("focusout", act.leave);
  on("click", (bar) => act.zoom(bar.node));
  on("keydown", (bar, event) => {
    const beside = rows(bar.row), at = beside.indexOf(bar);
    const goal = {
      ArrowLeft: () => beside[at - 1],
      ArrowRight: () => beside[at + 1],
      ArrowUp: () => bars.find((other) => other.node === bar.node.parent),
      ArrowDown: () => bars.find((other) => other.node.parent === bar.node),
    }[event.key];
    if (goal) goal()?.group.focus();
    else if (event.key === "Enter" || event.key === " ") act.zoom(bar.node);
    else if (event.key === "Escape") act.zoom(null);
    else return;
    event.preventDefault();
  });
}
