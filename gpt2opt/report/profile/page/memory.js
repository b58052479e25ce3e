// Allocated bytes over time, one line for each profile.
import { bytes, drawn, time } from "./show.js";

const HEIGHT = 210, LEFT = 62, RIGHT = 12, TOP = 18, BOTTOM = 24; // px

/** curves: [{name, color, dashed, points: [[µs, bytes]], phases: [[name, start, end]]}]. act: {say(lines, x, y), leave()}. */
export function drawMemory(into, curves, act) {
  const width = Math.max(320, into.clientWidth);
  const end = Math.max(...curves.map(({ points }) => points.at(-1)[0]));
  const sizes = curves.flatMap(({ points }) => points.map(([, size]) => size));
  const low = Math.min(0, ...sizes), high = Math.max(1, ...sizes);
  const x = (us) => LEFT + ((width - LEFT - RIGHT) * us) / end;
  const y = (size) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - size)) / (high - low);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", tabindex: 0, "aria-label": curves.map(peakOf).join("; ") });
  drawPhases(svg, curves[0], x);
  for (const size of new Set([low, 0, high / 2, high]))
    svg.append(
      drawn("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(size), y2: y(size) }),
      drawn("text", { x: LEFT - 6, y: y(size) + 4, "text-anchor": "end" }, bytes(Math.round(size))),
    );
  for (const share of [0, 0.25, 0.5, 0.75, 1])
    svg.append(drawn("text", { x: x(share * end), y: HEIGHT - 6, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" }, time(share * end)));
  for (const { points, color, dashed } of curves) {
    const steps = points.map(([us, size], number) => (number ? `H${x(us).toFixed(1)}V${y(size).toFixed(1)}` : `M${x(us).toFixed(1)} ${y(size).toFixed(1)}`));
    svg.append(drawn("path", { d: steps.join(""), fill: "none", stroke: color, "stroke-width": 2, ...(dashed ? { "stroke-dasharray": "6 3" } : {}) }));
  }
  const at = svg.appendChild(drawn("line", { class: "at", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }));
  let shown = 0;
  const show = (us) => {
    shown = Math.min(end, Math.max(0, us));
    for (const end of ["x1", "x2"]) at.setAttribute(end, x(shown));
    at.setAttribute("visibility", "visible");
    const box = svg.getBoundingClientRect();
    act.say([[time(shown), ""], ...curves.map(({ name, points }) => [name, bytes(sizeAt(points, shown))])], box.left + (x(shown) * box.width) / width, box.top);
  };
  const leave = () => { at.setAttribute("visibility", "hidden"); act.leave(); };
  svg.addEventListener("mousemove", (event) => show(((event.offsetX * width) / svg.clientWidth - LEFT) * (end / (width - LEFT - RIGHT))));
  svg.addEventListener("mouseleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    show(shown + (step * end) / 100);
    event.preventDefault();
  });
  into.replaceChildren(svg);
}

/** Shade every other call of `prefill` and `decode`, and name it where there is room. */
function drawPhases(svg, { phases }, x) {
  phases.forEach(([name, start, end], number) => {
    const wide = x(end) - x(start);
    if (number % 2 === 0) svg.append(drawn("rect", { class: "phase", x: x(start), width: wide, y: TOP, height: HEIGHT - TOP - BOTTOM }));
    if (wide > 46) svg.append(drawn("text", { x: (x(start) + x(end)) / 2, y: TOP - 6, "text-anchor": "middle" }, name));
  });
}

const sizeAt = (points, us) => points.findLast(([at]) => at <= us)?.[1] ?? 0;
export const peakOf = ({ name, points }) => `${name}: at most ${bytes(Math.max(...points.map(([, size]) => size)))}`;
