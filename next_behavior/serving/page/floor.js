// The page's state, and what each click does.
//
// A draft is a history of this tab alone: the service is asked about it, and nothing is stored. Events of a stored user
// are stored, the memory learns from them, and every later answer changes. Every few seconds the page asks how far the
// memory has counted: events that others send show up as they come.

import * as pieces from "./pieces.js";
import { get, post, token, Trouble } from "./service.js";
import { count, percent, shown } from "./shown.js";
import * as why from "./why.js";

const POLL_SECONDS = 3;
const TYPING_SECONDS = 0.15;
const TOP_K = 10;

const at = (id) => document.getElementById(id);

const state = {
  info: null,
  user: null, // null: a draft
  storedUser: null, // the one to come back to
  draft: [],
  events: [],
  answers: [],
  before: null, // key of an answer -> its probability before the last event
  why: null, // the answer that is explained: its key, and the explanation once it is there
  learned: null, // what the memory learned from the last click
  outbox: [], // events that are being stored, or could not be
  delivering: false,
  titles: new Map(),
  asked: 0, // numbers of the newest question, search and list of users: older answers are dropped
  searched: 0,
  listed: 0,
  answered: false,
};

// -- trouble ----------------------------------------------------------------------------------------------------------

const timers = new Map();

function later(name, seconds, task) {
  clearTimeout(timers.get(name));
  timers.set(name, setTimeout(task, seconds * 1000));
}

function say(text) {
  at("said").textContent = text;
  at("said").classList.add("fresh");
  later("said", 4, () => at("said").classList.remove("fresh"));
}

function live(is, text) {
  document.body.classList.toggle("offline", !is);
  at("served").textContent = text;
}

// Shows what went wrong, and asks again by itself where that can help.
function failed(error, again) {
  if (!(error instanceof Trouble)) throw error;
  if (error.kind === "token") return askForToken();
  at("answers").classList.add("stale");
  if (error.kind === "refused") return showTrouble(error.message, { request: error.request });
  if (error.kind === "offline") live(false, "Offline");
  const seconds = error.kind === "offline" ? POLL_SECONDS : error.retry;
  const text = `${error.message} Asking again in ${count(seconds, "second")}.`;
  showTrouble(text, { kind: "hint", buttons: [["Ask now", again]] });
  later("again", seconds, again);
}

function showTrouble(message, details) {
  at("trouble").replaceChildren(pieces.trouble(message, details));
}

function clearTrouble() {
  clearTimeout(timers.get("again"));
  at("trouble").replaceChildren();
  at("answers").classList.remove("stale");
}

function askForToken() {
  for (const timer of timers.values()) clearTimeout(timer);
  if (!at("gate").open) at("refused").hidden = token.get() === null;
  token.forget();
  at("forget").hidden = true;
  live(false, "Waiting for a token");
  at("columns").hidden = true;
  clearTrouble();
  if (!at("gate").open) at("gate").showModal();
  at("token").value = "";
  at("token").focus();
}

// -- the service ------------------------------------------------------------------------------------------------------

async function start() {
  try {
    takeInfo(await get("/info"));
  } catch (error) {
    return failed(error, start);
  }
  clearTrouble();
  at("columns").hidden = false;
  at("forget").hidden = token.get() === null;
  showActions();
  showWho();
  later("poll", POLL_SECONDS, poll);
  await Promise.all([search(), refresh()]);
  if (state.outbox.length) deliver(); // what waited for a token
}

function takeInfo(info) {
  state.info = info;
  const store = info.store === null ? " · no event store" : "";
  live(true, `Live · ${count(info.items, "item")} · model ${shown(info.model, 12)}${store}`);
}

async function poll() {
  later("poll", POLL_SECONDS, poll);
  if (document.hidden || state.info === null) return;
  const { counted_to, model } = state.info;
  const wasOffline = document.body.classList.contains("offline");
  try {
    takeInfo(await get("/info"));
  } catch (error) {
    if (error.kind === "token") return askForToken();
    if (error.kind === "offline" && !wasOffline) failed(error, refresh);
    return;
  }
  if (state.info.model !== model) {
    showActions();
    search();
  }
  if (wasOffline || state.info.model !== model || state.info.counted_to !== counted_to) refresh();
}

const path = (user, name) => `/v1/users/${encodeURIComponent(user)}/${name}`;

const draftEvents = () => state.draft.map(({ item, action, timestamp }) => ({ item, action, timestamp }));

// The history of a stored user as it is now, and the answers to it or to the draft.
async function refresh() {
  const number = ++state.asked;
  const user = state.user;
  const options = chosenOptions();
  at("answers").ariaBusy = "true";
  try {
    const [reply, stored] = await Promise.all([ask(options),
      user === null ? { events: state.draft } : get(path(user, "events"))]);
    if (number === state.asked) take(reply, stored.events, JSON.stringify([user, options]));
  } catch (error) {
    if (number === state.asked) failed(error, refresh);
  } finally {
    if (number === state.asked) at("answers").ariaBusy = "false";
  }
}

function chosenOptions() {
  const options = {
    top_k: TOP_K,
    of: document.querySelector("#of input:checked").value,
    exclude_seen: at("exclude").checked,
    action: at("given").value || null,
    paths: true,
  };
  if (options.of === "action") Object.assign(options, { exclude_seen: false, action: null, paths: false });
  return options;
}

function ask(options) {
  if (state.user !== null) return get(path(state.user, "next"), options);
  return post("/v1/predict", { ...options, events: draftEvents().slice(-state.info.limits.history_events) });
}

let question = null;

function take(reply, events, asked) {
  const same = asked === question;
  const newest = (list) => JSON.stringify([list.length, list.at(-1)?.timestamp]);
  if (!same) state.before = null;
  else if (newest(events) !== newest(state.events)) {
    state.before = new Map(state.answers.map((answer) => [pieces.keyOf(answer), answer.probability]));
  }
  if (!same || newest(events) !== newest(state.events)) state.why = null;
  question = asked;
  state.events = [...events];
  state.answers = reply.answers;
  for (const one of [...events, ...reply.answers]) if (one.item !== null) state.titles.set(one.item, one.title);
  clearTrouble();
  const { actions, max_events, has_time } = state.info;
  at("answers").replaceChildren(pieces.answers(reply.answers, state.before, actions, addAnswer, explain));
  at("hints").replaceChildren(...pieces.hints(reply, events, max_events));
  at("when").replaceChildren(pieces.when(reply.answers[0]?.when, has_time) ?? "");
  at("restrictions").hidden = document.querySelector("#of input:checked").value === "action";
  showWhy();
  if (state.answered && same && state.before !== null) {
    const [first] = reply.answers;
    if (first) say(`Now first: ${pieces.inWords(first)}, ${percent(first.probability)}`);
  }
  state.answered = true;
}

// -- why an answer is given -------------------------------------------------------------------------------------------

async function explain(answer) {
  const key = pieces.keyOf(answer);
  const closes = state.why?.key === key;
  state.why = closes ? null : { key, answer: null, trouble: null };
  showWhy();
  if (closes) return;
  const mine = state.why;
  try {
    const { answers } = await ask({ ...chosenOptions(), paths: true, explain: true });
    mine.answer = answers.find((one) => pieces.keyOf(one) === key) ?? null;
    if (mine.answer === null) mine.trouble = "The answers have changed meanwhile. Ask again.";
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    if (error.kind === "token") return askForToken();
    mine.trouble = error.message;
  }
  if (mine === state.why) showWhy();
}

// The explanation below its answer, and the history in its colors.
function showWhy() {
  if (!why.place(at("answers"), state.why, shownEvents())) state.why = null;
  showHistory();
}

// What stands beside the event at a place of the history.
const markOf = (place) => why.mark(state.why?.answer, place, shownEvents().length);

const shownEvents = () => (state.user === null ? state.draft : state.events);

// -- what is shown ----------------------------------------------------------------------------------------------------

function showHistory() {
  const { actions } = state.info;
  const events = shownEvents();
  const own = state.outbox.filter(({ sent }) => sent[0].user_id === state.user);
  const listed = [...events, ...own.map(({ event, note }) => ({ ...event, waiting: note }))];
  at("history").replaceChildren(pieces.history(listed, actions, markOf));
  at("context").replaceChildren(...pieces.context(events, actions, state.user));
  at("edit").hidden = state.user !== null || !state.draft.length;
}

function showLesson() {
  const { store } = state.info;
  let content;
  if (store === null) {
    content = "This service has no event store, so it learns nothing.";
  } else if (state.learned !== null) {
    content = pieces.lesson(state.learned, (item) => state.titles.get(item) ?? null);
  } else {
    content = state.user === null ? "Nothing: a draft is not stored. The memory learns from events of stored users."
      : "Nothing yet. Add an event, and see which pairs of items the memory counts.";
  }
  const hidden = store === null || state.user !== null || !state.draft.length;
  const keep = pieces.el("button", { type: "button", hidden }, "Store this draft as a new user");
  keep.addEventListener("click", keepDraft);
  const shownContent = typeof content === "string" ? pieces.el("p", { className: "quiet" }, content) : content;
  at("lesson").replaceChildren(shownContent, keep);
}

function showWho() {
  const stored = state.info.store !== null;
  const picking = document.querySelector("#who input:checked").value === "user";
  document.querySelector("#who input[value=user]").disabled = !stored;
  at("pick").hidden = !picking;
  at("whose").textContent = !stored ? "A draft is a history of this page alone. This service stores no events."
    : picking ? "Each event is stored, and the memory learns from it: later answers change for everybody."
    : "A history of this page alone: nothing is stored or learned.";
  if (picking) listUsers();
  showLesson();
}

function showActions() {
  const { actions } = state.info;
  const chosen = chosenAction() ?? actions[0];
  const fieldset = at("actions");
  fieldset.replaceChildren(fieldset.querySelector("legend"));
  fieldset.hidden = !actions.length;
  fieldset.append(...pieces.actionChoice(actions, chosen));
  const given = at("given").value;
  at("given").replaceChildren(pieces.el("option", { value: "" }, "any"),
    ...actions.map((name) => pieces.el("option", { value: name, selected: name === given }, shown(name))));
}

function chosenAction() {
  return at("action")?.value ?? document.querySelector("#actions input:checked")?.value ?? null;
}

// -- events -----------------------------------------------------------------------------------------------------------

const addAnswer = (answer) => add(answer.item, answer.title, answer.action ?? chosenAction(), undefined);
const addItem = (one) => add(one.item, one.title, chosenAction(), one.known);

function add(item, title, action, known) {
  const bytes = item === null ? 0 : new TextEncoder().encode(item).length;
  if (bytes > state.info.limits.id_bytes) {
    const most = state.info.limits.id_bytes;
    showTrouble(`The id has ${count(bytes, "byte")}, and the service takes at most ${most}: the event is not added.`);
    return;
  }
  const event = { item, action, title, known, timestamp: Date.now() / 1000 };
  if (state.user === null) {
    // Two clicks in one millisecond are two moments.
    event.timestamp = Math.max(event.timestamp, (state.draft.at(-1)?.timestamp ?? 0) + 0.001);
    state.draft.push(event);
    showLesson();
    refresh();
  } else {
    const sent = [{ event_id: unique(), user_id: state.user, item, action, timestamp: event.timestamp }];
    state.outbox.push({ event, sent, note: "storing …" });
    showHistory();
    deliver();
  }
}

// Stores the events of the outbox, one after the other, and shows what was learned of each. An event that is sent again
// after a failure has the same id, so it is stored once.
async function deliver() {
  if (state.delivering) return;
  state.delivering = true;
  try {
    while (state.outbox.length) await deliverFirst();
  } catch (error) {
    notStored(error);
  } finally {
    state.delivering = false;
  }
}

async function deliverFirst() {
  const [{ event, sent }] = state.outbox;
  const { events: [{ result, learned }] } = await post("/v1/events", { events: sent, learned: true });
  state.outbox.shift();
  at("unsent").replaceChildren();
  if (state.user !== sent[0].user_id) return;
  state.learned = { event, result, pairs: learned };
  await refresh();
  showLesson();
  if (state.events.length === 1) listUsers(); // the user is a stored one now
}

function notStored(error) {
  if (!(error instanceof Trouble)) throw error;
  if (error.kind === "token") return askForToken(); // then they are sent
  for (const one of state.outbox) one.note = "not stored";
  showHistory();
  const discard = () => {
    state.outbox.length = 0;
    at("unsent").replaceChildren();
    showHistory();
  };
  const what = state.outbox.length === 1 ? "The event is not stored." : `${state.outbox.length} events are not stored.`;
  const buttons = [["Try again", deliver], ["Discard", discard]];
  at("unsent").replaceChildren(pieces.trouble(`${what} ${error.message}`, { request: error.request, buttons }));
}

async function keepDraft() {
  const user = `floor-${unique().slice(0, 8)}`;
  const sent = draftEvents().map((event) => ({ event_id: unique(), user_id: user, ...event }));
  try {
    const { events } = await post("/v1/events", { events: sent, learned: true });
    const { result, learned } = events.at(-1);
    state.learned = { event: state.draft.at(-1), result, pairs: learned };
  } catch (error) {
    return failed(error, keepDraft);
  }
  const learned = state.learned;
  document.querySelector("#who input[value=user]").checked = true;
  choose(user);
  state.learned = learned;
  showWho();
}

function unique() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID needs HTTPS or localhost
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function choose(user) {
  state.user = user;
  if (user !== null) state.storedUser = user;
  state.learned = null;
  state.events = [];
  showWho();
  refresh();
}

// -- search -----------------------------------------------------------------------------------------------------------

async function search() {
  const number = ++state.searched;
  const query = at("find").value.trim();
  try {
    const { items } = await get("/v1/items", { query, limit: 8 });
    if (number !== state.searched) return;
    for (const one of items) state.titles.set(one.item, one.title);
    at("shelf").replaceChildren(pieces.shelf(items, query, addItem));
  } catch (error) {
    if (number === state.searched) failed(error, () => Promise.all([search(), refresh()]));
  }
}

async function listUsers() {
  const number = ++state.listed;
  const written = at("user").value;
  try {
    const { users } = await get("/v1/users", { prefix: written, limit: 10 });
    if (number === state.listed) at("users").replaceChildren(pieces.users(users, written, state.user, choose));
  } catch (error) {
    if (number === state.listed) failed(error, listUsers);
  }
}

// -- clicks and keys --------------------------------------------------------------------------------------------------

for (const input of document.querySelectorAll("#of input, #exclude, #given")) input.addEventListener("change", refresh);
for (const input of document.querySelectorAll("#who input")) {
  input.addEventListener("change", () => choose(input.value === "draft" ? null : state.storedUser));
}
at("find").addEventListener("input", () => later("search", TYPING_SECONDS, search));
at("user").addEventListener("input", () => later("users", TYPING_SECONDS, listUsers));
at("undo").addEventListener("click", () => edit(state.draft.slice(0, -1)));
at("clear").addEventListener("click", () => edit([]));
at("forget").addEventListener("click", () => {
  token.forget();
  askForToken();
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const written = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(written)) {
    at("refused").hidden = false;
    return;
  }
  token.set(written);
  at("gate").close();
  start();
});
at("gate").addEventListener("cancel", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => document.hidden || poll());

function edit(draft) {
  state.draft = draft;
  showLesson();
  refresh();
}

start();
