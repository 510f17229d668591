// Why an answer is given: what each event of the history contributes to it, and what the parts of the model say.
//
// A contribution is a logarithm: the answer is exp(contribution) times as probable with the event as without it.

import { el, item, whole } from "./pieces.js";
import { count, percent, shown } from "./shown.js";

const MOST_EVENTS = 3; // named in words
const LEAST_EFFECT = 0.01; // smaller contributions matter to nobody
const LARGEST = Math.log(1000); // the end of the scale
const LEAST_POPULAR = 1.5;
const BY = {
  generate: "from the whole catalog",
  repeat: "as a repeat of an event in the history",
  associate: "as an item that often stands with recent ones",
};

export function factor(contribution) {
  if (Math.abs(contribution) > LARGEST) return contribution > 0 ? ">×1000" : "<×0.001";
  const times = Math.exp(contribution);
  return `×${times.toFixed(times >= 10 ? 0 : times >= 0.95 ? 1 : 2)}`;
}

// The factor on a colored ground, the stronger the effect, the stronger the color.
export function effect(contribution) {
  const strength = Math.min(1, Math.sqrt(Math.abs(contribution) / LARGEST));
  const mark = el("b", { className: `effect ${contribution >= 0 ? "more" : "less"}` }, factor(contribution));
  mark.style.setProperty("--strength", `${Math.round(100 * strength)}%`);
  return mark;
}

// Of a history that is longer than what was sent, the newest events are explained.
const left = (answer, length) => Math.max(0, length - answer.contributions.length);

// What stands beside the event at a place of a history of some length; nothing without an explained answer.
export function mark(answer, place, length) {
  const number = answer ? place - left(answer, length) : -1;
  const contribution = answer?.contributions[number];
  if (contribution === undefined) return null;
  return [el("span", { className: "number quiet" }, `${number + 1}.`), effect(contribution)];
}

const quoted = (event) => el("bdi", { className: "name" }, shown(whole(event), 60));

function pathLine({ paths }) {
  if (!paths) return [["It names no item: only the action is predicted."]];
  const [first, second] = Object.entries(paths).sort(([, one], [, other]) => other - one);
  const more = second[1] >= 0.1 ? `, and ${BY[second[0]]} (${percent(second[1])})` : "";
  return [[`It is named ${BY[first[0]]} (${percent(first[1])})${more}.`]];
}

function partLines({ because }, events) {
  if (!because) return [];
  const lines = [];
  const number = (place) => `event ${place + 1}`;
  if (because.repeats) {
    const { event, share } = because.repeats;
    lines.push([`It repeats ${number(event)}. If an item is repeated, it is this one with ${percent(share)}.`]);
  }
  for (const { event, pairs, reverse_pairs: reverse } of because.counted) {
    const [often, where] = pairs >= reverse ? [pairs, "after"] : [reverse, "before"];
    const times = often < 1 ? "less than once" : count(Math.round(often), "time");
    lines.push([`In other histories it came ${where} `, quoted(events[event]), ` (${number(event)}) ${times}.`]);
  }
  for (const { event, similarity } of because.similar_texts.slice(0, 1)) {
    const alike = `(${number(event)}), ${similarity.toFixed(2)} of 1.`;
    lines.push(["Its text is like that of ", quoted(events[event]), ` ${alike}`]);
  }
  if (because.popularity >= LEAST_POPULAR) {
    lines.push([`It was popular recently, which makes it ×${because.popularity.toFixed(1)} as probable.`]);
  }
  return lines;
}

// An explained answer in words.
function words(answer, history) {
  const events = history.slice(left(answer, history.length));
  const order = answer.contributions.map((contribution, place) => ({ contribution, place }))
    .filter(({ contribution }) => Math.abs(contribution) >= LEAST_EFFECT)
    .sort((one, other) => Math.abs(other.contribution) - Math.abs(one.contribution));
  const lines = [...pathLine(answer), ...partLines(answer, events)];
  const lead = !events.length ? "There is no event to explain it by: this is the answer for a new user."
    : !order.length ? "No single event matters much: without any one of them it is about as probable."
    : "What matters most, and how many times as probable the answer is with it as without it:";
  return el("div", {},
    lines.map((line) => el("p", {}, line)),
    el("p", {}, lead),
    order.length ? el("ol", { className: "matters" }, order.slice(0, MOST_EVENTS).map(({ contribution, place }) =>
      el("li", {}, effect(contribution), el("div", {}, `${place + 1}. `,
        events[place].action === null ? null : el("bdi", { className: "action" }, shown(events[place].action, 40)), " ",
        item(events[place]))))) : null);
}

// Puts the explanation `why`, an answer or what is said instead, below the answer of its key; whether there is one.
export function place(answers, why, history) {
  for (const row of answers.querySelectorAll(".reasons")) row.remove();
  for (const button of answers.querySelectorAll(".why")) button.ariaExpanded = "false";
  const row = [...answers.querySelectorAll("tr[data-key]")].find((one) => one.dataset.key === why?.key);
  if (!row) return false;
  row.querySelector(".why").ariaExpanded = "true";
  row.after(el("tr", { className: "reasons" }, el("td", { colSpan: row.cells.length, ariaLive: "polite" },
    why.answer ? words(why.answer, history) : el("p", { className: "quiet" }, why.trouble ?? "Asking the model …"))));
  return true;
}
