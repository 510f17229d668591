// Pieces of the page, made of elements and text. No text of a log or of a visitor is ever read as HTML.

import { ago, count, duration, longTime, percent, shown } from "./shown.js";

const PATHS = {
  generate: ["generated", "from the whole catalog"],
  repeat: ["repeated", "from this history"],
  associate: ["associated", "often together with recent items"],
};
// What became of an event that was not inserted.
const LEFT_OUT = {
  duplicate: "The event was stored already, and the memory has learned from it.",
  conflict: "The event was not stored: another one has its id.",
  erased: "The event was not stored: the user was erased after it.",
  expired: "The event was not stored: it is older than what the store keeps.",
};
// Pairs that are shown at first.
const MOST_PAIRS = 8;
// More actions than this are a list to choose from.
const MOST_CHIPS = 6;

// Children without what is null, lists of them as one list.
export const present = (...children) => children.flat(Infinity).filter((child) => (child ?? null) !== null);

// An element with properties and children; text becomes text.
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...present(children));
  return element;
}

// Title, or id where there is none.
export const whole = ({ item, title }) => (item === null ? "no item" : title?.trim() ? title : item);

export const inWords = (answer) => shown([answer.action, whole(answer)].filter(Boolean).join(" "));

export function item(event) {
  if (event.item === null) return [el("span", { className: "quiet" }, "no item")];
  const named = Boolean(event.title?.trim());
  return present(
    el("bdi", { className: "name" }, shown(whole(event)) || "(empty)"),
    named ? " " : null,
    named ? el("bdi", { className: "id quiet" }, shown(event.item)) : null,
    event.known === false ? " " : null,
    event.known === false ? el("span", { className: "new" }, "new to the model") : null,
  );
}

export function action(name, actions) {
  if (name === null) return null;
  const known = actions.includes(name);
  const mark = known ? { className: "action" } : { className: "action unknown", title: "unknown to the model" };
  return el("bdi", mark, shown(name));
}

// The actions to choose from; many of them are a list.
export function actionChoice(actions, chosen) {
  if (actions.length > MOST_CHIPS) {
    return [el("select", { id: "action", ariaLabel: "Action" },
      actions.map((name) => el("option", { value: name, selected: name === chosen }, shown(name))))];
  }
  return actions.map((name) => el("label", {},
    el("input", { type: "radio", name: "action", value: name, checked: name === chosen }),
    el("span", {}, el("bdi", {}, shown(name)))));
}

// -- answers ----------------------------------------------------------------------------------------------------------

const scale = () => el("span", { className: "scale", ariaHidden: "true" }, el("i", {}, "0"), el("i", {}, "100 %"));

function bar(share, before) {
  const filled = el("i", { className: "filled" });
  filled.style.width = `${100 * share}%`;
  filled.hidden = !(share > 0);
  if (before === null || before === undefined) return el("div", { className: "bar" }, filled);
  const tick = el("i", { className: "tick" });
  tick.style.left = `${100 * before}%`;
  return el("div", { className: "bar" }, filled, tick);
}

function paths(shares) {
  if (!shares) return el("td", { className: "named" });
  const parts = Object.entries(shares).map(([path, share]) => {
    const part = el("i", { className: path });
    part.style.width = `${100 * share}%`;
    return part;
  });
  const largest = Object.keys(shares).reduce((best, path) => (shares[path] > shares[best] ? path : best));
  const every = Object.entries(shares).map(([path, share]) => `${PATHS[path][0]} ${percent(share)}`).join(", ");
  return el("td", { className: "named" },
    el("small", {}, `${PATHS[largest][0]} ${percent(shares[largest])}`),
    el("div", { className: "paths", title: every }, parts));
}

export const keyOf = (answer) => JSON.stringify([answer.action, answer.item]);

// What the last event changed: the probability before it, where it is written otherwise now.
function change(answer, before) {
  if (before === null) return null;
  const was = before.get(keyOf(answer));
  if (was === undefined) return el("small", { className: "change up" }, "new in the list");
  if (percent(was) === percent(answer.probability)) return null;
  const up = answer.probability > was;
  return el("small", { className: `change ${up ? "up" : "down"}` }, `${up ? "▲" : "▼"} was ${percent(was)}`);
}

// The ranked answers. `before` has the probabilities before the last event, or is null; `add` and `why` are called with
// an answer.
export function answers(list, before, actions, add, why) {
  if (!list.length) return el("p", { className: "empty" }, "No candidate is left to rank.");
  const withItems = "paths" in list[0];
  const ranked = !withItems ? "Action" : list[0].action === null ? "Item" : "Action and item";
  const head = el("tr", {},
    el("th", { className: "rank", scope: "col" }, "#"),
    el("th", { className: "what", scope: "col" }, ranked),
    el("th", { className: "probability", scope: "col" }, "Probability", scale()),
    withItems ? el("th", { className: "named", scope: "col" }, "Named by", scale()) : null,
    withItems ? el("th", { className: "add", scope: "col" }, el("span", { className: "unseen" }, "Add")) : null);
  const rows = list.map((answer, index) => {
    const changed = change(answer, before);
    const label = `Add ${inWords(answer)} as an event`;
    const button = el("button", { type: "button", className: "plus", title: label, ariaLabel: label }, "+");
    button.addEventListener("click", () => add(answer));
    const reason = el("button", { type: "button", className: "plain why", ariaExpanded: "false" },
      "Why?", el("span", { className: "unseen" }, ` ${inWords(answer)}`));
    reason.addEventListener("click", () => why(answer));
    return el("tr", { "data-key": keyOf(answer) },
      el("td", { className: "rank quiet" }, String(index + 1)),
      el("td", { className: "what" },
        action(answer.action, actions), withItems ? [" ", item(answer)] : null, " ", reason),
      el("td", { className: "probability" }, el("b", {}, percent(answer.probability)), changed,
        bar(answer.probability, changed && before.get(keyOf(answer)))),
      withItems ? paths(answer.paths) : null,
      withItems ? el("td", { className: "add" }, button) : null);
  });
  const legend = el("p", { className: "legend quiet" }, Object.entries(PATHS).map(([path, [name, what]]) =>
    el("span", {}, el("i", { className: path }), el("b", {}, name), ` ${what}`)));
  return el("div", {},
    el("table", {}, el("thead", {}, head), el("tbody", {}, rows)), withItems ? legend : null);
}

export function when(times, hasTime) {
  if (!hasTime) return el("p", { className: "quiet small" }, "This model was trained on a log without times.");
  if (!times) return null;
  const horizons = Object.entries(times).filter(([name]) => name.startsWith("within_"));
  return el("div", {},
    el("h2", {}, "When"),
    el("p", {}, "The next event: half of the time within ", el("b", {}, duration(times.median_seconds))),
    el("dl", {},
      el("dt", {}, "Probability"), el("dd", {}, scale(), el("b", {})),
      horizons.map(([name, probability]) => [
        el("dt", {}, name.replaceAll("_", " ")),
        el("dd", {}, bar(probability), el("b", {}, percent(probability))),
      ])));
}

export function hints(reply, events, maxEvents) {
  const lines = [];
  if (reply.cold_start && events.length) {
    lines.push("The model knows nothing of this history. The answers are those for a new user.");
  } else if (reply.unknown_items) {
    lines.push(`${count(reply.unknown_items, "event has an item", "events have items")} that the model does not know.`);
  }
  if (reply.truncated) lines.push(`The model reads the newest ${count(maxEvents, "event")}.`);
  return lines.map((line) => el("p", { className: "hint" }, line));
}

// What the answers are about, in a line.
export function context(events, actions, user) {
  const whose = user === null ? [] : ["User ", el("bdi", { className: "name" }, shown(user)), ", "];
  if (!events.length) return [...whose, user === null ? "For a new user" : "without a stored event"];
  const last = events.at(-1);
  const after = user === null ? "After" : "after";
  const many = events.length > 1 ? ` ${count(events.length, "event")}, the last:` : "";
  return present(whose, `${after}${many} `, action(last.action, actions), " ", item(last));
}

// -- history, shelf, users --------------------------------------------------------------------------------------------

// `mark` gives what is shown beside the event at a place, or null.
export function history(events, actions, mark) {
  if (!events.length) return el("p", { className: "empty" }, "No events yet. The answers are those for a new user.");
  const now = Date.now() / 1000;
  const rows = events.map((event, place) => el("li", { className: event.waiting ? "waiting" : "" },
    mark(place), el("div", {}, action(event.action, actions), " ", ...item(event)),
    el("time", { className: "quiet", title: longTime(event.timestamp) }, event.waiting || ago(event.timestamp, now))));
  return el("ol", { tabIndex: 0, ariaLabel: "History, newest first" }, rows.reverse());
}

export function shelf(items, query, add) {
  const tile = (one, ...children) => {
    const button = el("button", { type: "button", className: "tile", title: shown(whole(one)) }, children);
    button.addEventListener("click", () => add(one));
    return button;
  };
  const tiles = items.map((one) => tile(one, ...item(one)));
  const written = { item: query, title: null, known: false };
  const fits = query && !items.some((one) => one.item === query);
  return el("div", {},
    items.length ? null : el("p", { className: "empty" },
      query ? ["No title or id holds “", el("bdi", {}, shown(query)), "”."] : "This model has no items."),
    el("div", { className: "tiles" }, tiles, fits ? tile(written, ...item(written)) : null));
}

export function users(names, written, chosen, choose) {
  const button = (name, text) => {
    const made = el("button", { type: "button", className: "user", ariaPressed: String(name === chosen) }, text);
    made.addEventListener("click", () => choose(name));
    return made;
  };
  const fresh = written && !names.includes(written);
  return el("div", {},
    !names.length && !fresh ? el("p", { className: "empty" }, "No events are stored yet. Type an id to begin.") : null,
    el("div", { className: "names" },
      fresh ? button(written, ["Open ", el("bdi", {}, shown(written))]) : null,
      names.map((name) => button(name, el("bdi", {}, shown(name))))));
}

// -- what was learned -------------------------------------------------------------------------------------------------

// `pairs` is what the service said: null of a late event, undefined if the memory had not counted it yet.
export function lesson({ event, result, pairs }, titleOf) {
  const note = (text) => el("p", { className: "quiet" }, text);
  if (result !== "inserted") return note(LEFT_OUT[result]);
  if (pairs === undefined) return note("The event is stored. The memory has not counted it yet.");
  if (pairs === null) {
    return note("The event is older than the user's newest. It has its place in the history, and is not counted.");
  }
  if (!pairs.length) return note("No new pair: the memory counts a known item that follows another one.");
  const sorted = [...pairs].sort((one, other) => other.weight - one.weight);
  const row = (pair) => el("li", {},
    el("div", { className: "pair" }, item({ item: pair.item, title: titleOf(pair.item) })),
    el("b", {}, `+${pair.weight.toFixed(pair.weight < 0.1 ? 3 : 2)}`),
    bar(pair.weight / sorted[0].weight));
  const rest = sorted.slice(MOST_PAIRS);
  const after = `now counts more after ${count(pairs.length, "item")}. Each weight was added to the count of a pair:`;
  return el("div", {},
    el("p", {}, el("bdi", { className: "name" }, shown(whole(event))), ` ${after}`),
    el("ol", { className: "pairs" }, sorted.slice(0, MOST_PAIRS).map(row)),
    rest.length ? el("details", {},
      el("summary", {}, `${rest.length} more`), el("ol", { className: "pairs" }, rest.map(row))) : null);
}

export function trouble(message, { kind = "error", request = null, buttons = [] } = {}) {
  const named = request ? el("small", { className: "quiet" }, ` Request ${request}`) : null;
  return el("div", { className: kind }, el("span", {}, message, named),
    buttons.map(([label, press]) => {
      const button = el("button", { type: "button", className: "plain" }, label);
      button.addEventListener("click", press);
      return button;
    }));
}
