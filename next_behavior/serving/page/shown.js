// How the page writes things: text of strangers, probabilities, durations and moments.
//
// Ids, titles and actions come from a log. `shown` makes visible what could not be seen and cuts what is too long, by
// the rule of next_behavior/data/shown.py. What it gives is put on the page as text, never as HTML.

const MOST_CHARACTERS = 120;
// Control and format characters, line and paragraph ends, lone surrogates. The joiner is one that emoji need.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u;
const JOINER = "\u200d";
const NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"};
const MOST_AGO = 30 * 86400; // seconds; an older event has its date
const UNITS = [[86400, "days"], [3600, "hours"], [60, "minutes"], [1, "seconds"]];

export function shown(text, most = MOST_CHARACTERS) {
  const visible = [];
  let read = 0;
  for (const character of String(text)) {
    if (read++ > most || visible.length > most) break;
    visible.push(...(character === JOINER || !HIDDEN.test(character) ? [character] : escaped(character)));
  }
  return visible.length <= most ? visible.join("") : visible.slice(0, most - 1).join("") + "…";
}

function escaped(character) {
  const code = character.codePointAt(0);
  const digits = code.toString(16);
  if (NAMED[character]) return NAMED[character];
  return code < 256 ? "\\x" + digits.padStart(2, "0") : code < 65536 ? "\\u" + digits.padStart(4, "0")
    : "\\U" + digits.padStart(8, "0");
}

export function percent(probability) {
  const value = 100 * probability;
  if (value > 0 && value < 0.01) return "<0.01 %";
  return `${value.toFixed(value >= 10 || value === 0 ? 0 : value >= 1 ? 1 : 2)} %`;
}

export function duration(seconds) {
  if (seconds < 1.5) return "a second";
  const [size, unit] = UNITS.find(([size]) => seconds >= 1.5 * size);
  const value = seconds / size;
  return `${value.toFixed(value < 10 && unit !== "seconds" ? 1 : 0)} ${unit}`;
}

export function ago(moment, now) {
  const seconds = now - moment;
  if (seconds >= MOST_AGO) return longTime(moment).slice(0, 10);
  return seconds < 5 ? "now" : `${duration(seconds).replace(/ (min|\w)\w+$/, " $1")} ago`;
}

export function longTime(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.valueOf()) ? String(seconds) : date.toISOString().slice(0, 19).replace("T", " ") + " UTC";
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
