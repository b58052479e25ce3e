// The texts that were written, each in an entry of its own of this browser's storage, so that no reload loses one.

const PREFIX = "gpt2opt.text.";
const texts = new Map();

export const find = (id) => texts.get(id) ?? null;
/** The last text of a tab that has ended: one that is being written belongs to another window. */
export const newest = (kind) => inOrder().findLast((text) => text.end && text.ask.ask === kind) ?? null;
export const written = (text, side = 0) => text.sides[side].map((token) => token.text).join("");
export const versions = (text) => inOrder().filter(({ ask, parent }) => parent === text.parent && ask.ask === text.ask.ask && ask.prompt === text.ask.prompt);
const inOrder = () => [...texts.values()].sort((a, b) => a.at - b.at);

/** Read what is stored; key: only this entry, which another window changed. */
export function read(key) {
  for (const each of key ? [key] : Object.keys(localStorage)) {
    if (!each.startsWith(PREFIX)) continue;
    const stored = localStorage.getItem(each);
    if (stored) texts.set(each.slice(PREFIX.length), JSON.parse(stored));
    else texts.delete(each.slice(PREFIX.length));
  }
}

/** A text that begins: what is asked for, what the server said of each model, the tokens of each side, and how the text ended. */
export function begin(ask, parent) {
  const id = [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const text = { id, at: Date.now(), parent, ask: { ...ask, id }, ready: [], sides: ask.precisions.map(() => []), speeds: [], received: 0, end: null };
  texts.set(id, text);
  save(text);
  return text;
}

/** Store a text. Where there is no room, the oldest ones give up what their tokens were chosen from, and at last this one. Return whether it is stored. */
export function save(text) {
  texts.set(text.id, text);
  if (stored(text)) return true;
  for (const old of inOrder().filter((each) => each !== text && each.end && each.sides.flat().some((token) => token.others))) {
    for (const token of old.sides.flat()) delete token.others;
    stored(old);
    if (stored(text)) return true;
  }
  return stored(text, (key, value) => (key === "others" ? undefined : value));
}

function stored(text, replacer) {
  try {
    localStorage.setItem(PREFIX + text.id, JSON.stringify(text, replacer));
    return true;
  } catch {
    return false;
  }
}

export function remove(text) {
  texts.delete(text.id);
  localStorage.removeItem(PREFIX + text.id);
}

/** All texts as a list, newest first, each behind the text that it goes on from, with how deep it stands. */
export function tree() {
  const children = new Map();
  for (const text of inOrder().reverse()) {
    const parent = texts.has(text.parent) ? text.parent : null;
    children.set(parent, [...(children.get(parent) ?? []), text]);
  }
  const below = (parent, depth) => (children.get(parent) ?? []).flatMap((text) => [{ text, depth }, ...below(text.id, depth + 1)]);
  return below(null, 0);
}
