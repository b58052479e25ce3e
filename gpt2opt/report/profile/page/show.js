// From numbers to words and elements. Nothing here keeps a state.

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

const digits = (value, count = 3) => value.toLocaleString("en", { maximumSignificantDigits: count });
export const time = (us) => (us >= 1e6 ? `${digits(us / 1e6)} s` : us >= 1000 ? `${digits(us / 1000)} ms` : `${digits(us)} µs`);
export const milliseconds = (us) => (us / 1000).toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
export const percent = (share) => `${(100 * share).toFixed(1)}%`;
export const bytes = (count) =>
  Math.abs(count) >= 1e6 ? `${digits(count / 1e6)} MB` : Math.abs(count) >= 1e3 ? `${digits(count / 1e3)} kB` : `${count} B`;
export const counted = (count) => count.toLocaleString("en");
const signed = (text) => (text.startsWith("-") ? `−${text.slice(1)}` : `+${text}`);
export const difference = (us) => signed(milliseconds(us));

/** By how much a time differs from another one: a mark, words, and a colour that tells the same to those who can tell colours. */
export function change(us, base) {
  if (!base) return { mark: "▲", words: "new", color: "worse", strength: 1 };
  const ratio = us / base;
  const strength = Math.min(1, Math.abs(Math.log2(Math.max(ratio, 1e-3))));
  const words = ratio >= 2 ? `× ${digits(ratio, 2)}` : `${signed((100 * (ratio - 1)).toFixed(Math.abs(ratio - 1) < 0.1 ? 1 : 0))}%`;
  if (Math.abs(ratio - 1) <= 0.05) return { mark: "", words, color: "same", strength: 0.3 };
  return ratio < 1 ? { mark: "▼", words, color: "better", strength } : { mark: "▲", words, color: "worse", strength };
}

/** A profile with its tree unpacked: nodes with their own time, and a map from the path of a call to its node. */
export function unpack(profile) {
  const calls = new Map();
  const grow = ([number, count, cpu, gpu, children], parent) => {
    const [name, kind, note] = profile.names[number];
    const node = { name, kind, note, parent, calls: count, total: { cpu, gpu }, own: {} };
    node.path = parent ? `${parent.path}\n${kind} ${name}` : "";
    calls.set(node.path, node);
    node.children = children.map((child) => grow(child, node));
    for (const clock of ["cpu", "gpu"])
      node.own[clock] = Math.max(0, node.total[clock] - node.children.reduce((sum, child) => sum + child.total[clock], 0));
    return node;
  };
  return { ...profile, root: grow(profile.tree, null), calls };
}
