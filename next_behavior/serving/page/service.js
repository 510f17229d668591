// Requests to the service that this page came from. Every failure is a `Trouble` that says what the visitor can do.

const TOKEN = "next-behavior-token";
const REQUEST_SECONDS = 15;
// Statuses after which the same request may succeed.
const PASSING = [429, 502, 503, 504];

export class Trouble extends Error {
  // kind: "token" (none, or refused), "offline", "passing" (worth asking again), or "refused".
  constructor(kind, message, { retry = 3, request = null } = {}) {
    super(message);
    this.kind = kind;
    this.retry = retry;
    this.request = request;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

export function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== "" && value !== false);
  const text = new URLSearchParams(given).toString();
  return answered(text ? `${path}?${text}` : path, { method: "GET" });
}

export function post(path, content) {
  const headers = { "Content-Type": "application/json" };
  return answered(path, { method: "POST", headers, body: JSON.stringify(content) });
}

async function answered(path, options) {
  const headers = { ...options.headers };
  if (token.get() !== null) headers.Authorization = `Bearer ${token.get()}`;
  const signal = AbortSignal.timeout(REQUEST_SECONDS * 1000);
  let response, content;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", signal });
    content = await response.json();
  } catch {
    if (response !== undefined) throw new Trouble("passing", `The service answered ${response.status} and no JSON.`);
    throw new Trouble("offline", "The service does not answer.");
  }
  if (response.ok) return content;
  const details = { retry: Number(response.headers.get("Retry-After")) || 3, request: content.request_id };
  if (response.status === 401) throw new Trouble("token", "The service asks for a token.");
  throw new Trouble(PASSING.includes(response.status) ? "passing" : "refused", sentence(content.detail), details);
}

// A detail of a problem document as a sentence.
function sentence(detail) {
  const text = String(detail || "The service gave no reason.");
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
