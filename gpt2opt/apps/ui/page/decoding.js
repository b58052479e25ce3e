// How tokens are chosen: the fields, what each does, what it may be, and presets of them.

import { byId, element } from "./show.js";

const whole = (least) => (value) => Number.isInteger(value) && value >= least;
const between = (low, high) => (value) => value >= low && value <= high;
const share = (value) => value > 0 && value <= 1;
/** Field -> whether a number is possible, which are, and what the field does. */
const FIELDS = {
  max_new_tokens: [whole(1), "a whole number of at least 1", "The most tokens that are written. A token is about three quarters of a word."],
  seed: [between(0, Number.MAX_SAFE_INTEGER), "a whole number of at least 0", "The start of the random numbers: the same seed gives the same text."],
  temperature: [between(0.001, 1000), "a number from 0.001 to 1000", "Below 1, a text is more predictable; above 1, more surprising."],
  top_k: [whole(0), "a whole number of at least 0", "Draw among this many most probable tokens; 0: among all."],
  top_p: [share, "a number above 0 and at most 1", "Draw among the fewest tokens that have this probability together; 1: among all."],
  min_p: [between(0, 1), "a number from 0 to 1", "Leave out tokens below this share of the highest probability; 0: none."],
  typical_p: [share, "a number above 0 and at most 1", "Draw among the tokens that surprise about as much as is to be expected here, up to this probability together; 1: among all."],
  repetition_penalty: [between(0.01, 100), "a number from 0.01 to 100", "Above 1, tokens that the text has already become less probable; 1: no penalty."],
};
export const NUMBERS = Object.keys(FIELDS);
const OFF = { do_sample: "true", temperature: "1", top_k: "0", top_p: "1", min_p: "0", typical_p: "1", repetition_penalty: "1" };
const PRESETS = {
  balanced: { ...OFF, temperature: "0.7", top_k: "50", top_p: "0.9", repetition_penalty: "1.1" },
  careful: { ...OFF, temperature: "0.4", top_k: "40", top_p: "0.9", repetition_penalty: "1.15" },
  inventive: { ...OFF, temperature: "1.1", min_p: "0.05", repetition_penalty: "1.1" },
  "the model's own probabilities": OFF,
  "greedy, without repeating": { ...OFF, do_sample: "false", repetition_penalty: "1.2" },
};
const OWN = "own settings";

const labelOf = (name) => byId(name).parentNode.firstChild.textContent.trim();

export function fillDecoding() {
  byId("preset").append(...[...Object.keys(PRESETS), OWN].map((name) => element("option", { value: name }, name)));
  byId("preset").addEventListener("change", () => {
    for (const [name, value] of Object.entries(PRESETS[byId("preset").value] ?? {})) byId(name).value = value;
    if (byId("preset").value === OWN) byId("fine").open = true;
  });
  byId("hints").append(
    ...NUMBERS.flatMap((name) => {
      byId(name).setAttribute("aria-describedby", `hint-${name}`);
      return [element("dt", {}, labelOf(name)), element("dd", { id: `hint-${name}` }, FIELDS[name][2])];
    }),
  );
}

/** Name the preset that the fields have, and switch off what greedy decoding does not use. */
export function showDecoding() {
  const has = ([, values]) => Object.entries(values).every(([name, value]) => byId(name).value === value);
  byId("preset").value = Object.entries(PRESETS).find(has)?.[0] ?? OWN;
  for (const field of document.querySelectorAll(".sampled input")) field.disabled = byId("do_sample").value === "false";
  for (const name of NUMBERS) byId(name).setAttribute("aria-invalid", String(!possible(name)));
}

const possible = (name) => byId(name).value !== "" && FIELDS[name][0](byId(name).valueAsNumber);

/** What the server gets; throws an error that says which field can't be so. */
export function settings() {
  const found = { do_sample: byId("do_sample").value === "true" };
  found.stop_strings = byId("stop_strings").value.split("\n").filter((line) => line);
  for (const name of NUMBERS) {
    if (!possible(name)) {
      if (byId("fine").contains(byId(name))) byId("fine").open = true;
      throw new Error(`${labelOf(name)} can't be ${byId(name).value || "empty"}: choose ${FIELDS[name][1]}.`);
    }
    found[name] = byId(name).valueAsNumber;
  }
  return found;
}
