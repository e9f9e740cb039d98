"use strict";
// The state of a relay, asked for every second. Whatever comes from the relay is put in as
// text, never as markup.

const $ = (id) => document.getElementById(id);
const cards = new Map(); // "source sms": the parts of its card
let history = null;
let last = null; // the last status
let answered = Date.now();

// element makes <name class=...> with a text or children.
function element(name, className, ...children) {
  const e = document.createElement(name);
  if (className) e.className = className;
  e.append(...children);
  return e;
}

// put changes a text only where it differs, so that a reader is not interrupted.
function put(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

const number = (n) => n.toLocaleString("en");
const rate = (n) => (n === 0 ? "0/s" : n < 0.1 ? "<0.1/s" : n < 9.95 ? n.toFixed(1) + "/s" : number(Math.round(n)) + "/s");

function span(seconds) {
  if (seconds < 0) seconds = 0;
  if (seconds < 0.001) return "<1 ms";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 10) return seconds.toFixed(1) + " s";
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return Math.round(seconds / 3600) + " h";
  return Math.round(seconds / 86400) + " d";
}

const since = (time) => (Date.now() - Date.parse(time)) / 1000;
const latency = (l) => (l ? span(l.p50_seconds) + " / " + span(l.p99_seconds) : "–");
const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

// The states and how they look.
const looks = {
  running: "good", up: "good", ok: "good",
  starting: "warn", probe: "warn", paused: "warn", draining: "warn", stopped: "warn",
  shadow: "warn", idle: "warn",
  waiting: "bad", retrying: "bad", down: "bad",
};

// card gives the card of kind and name in a column, and makes it.
function card(kind, name, column) {
  const key = kind + " " + name;
  let c = cards.get(key);
  if (c) return c;
  c = { values: new Map(), lines: new Map(), seen: 0 };
  c.title = element("b", "", name);
  c.badge = element("span", "badge");
  c.reason = element("p", "reason");
  c.list = element("dl");
  c.root = element("article", "card", element("div", "top", c.title, c.badge), c.reason, c.list);
  c.root.dataset.kind = kind;
  c.root.dataset.name = name;
  c.root.setAttribute("aria-label", kind + " " + name);
  $(column).append(c.root);
  cards.set(key, c);
  return c;
}

// show sets the values of a card: pairs of a label and a text.
function show(c, look, state, reason, pairs) {
  c.seen = tick;
  const name = "card " + look;
  if (c.root.className !== name) c.root.className = name;
  const badge = "badge " + look;
  if (c.badge.className !== badge) c.badge.className = badge;
  c.badge.hidden = state === "";
  put(c.badge, state);
  c.reason.hidden = !reason;
  put(c.reason, reason || "");
  const labels = new Set(pairs.map(([label]) => label));
  for (const [label, value] of c.values) {
    if (!labels.has(label)) { // a reload has changed the mode
      value.parentElement.remove();
      c.values.delete(label);
    }
  }
  for (const [label, text] of pairs) {
    let value = c.values.get(label);
    if (!value) {
      value = element("dd");
      c.list.append(element("div", "", element("dt", "", label), value));
      c.values.set(label, value);
    }
    put(value, text);
  }
}

// chart makes a line with the words about it.
function chart(c) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // its words say what there is to say
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.append(path);
  const words = element("figcaption", "quiet");
  const root = element("figure", "", svg, words);
  c.root.insertBefore(root, c.button || null);
  return { svg, path, words, root };
}

// draw draws rates as lines: pairs of what they are of and points, the oldest first. The line of
// a young relay is that of five or fifteen minutes, and that of the last half hour in the end.
function draw(c, charts) {
  const drawn = new Set(charts.map(([of]) => of));
  for (const [of, line] of c.lines) {
    if (!drawn.has(of)) { // gone with a reload
      line.root.remove();
      c.lines.delete(of);
    }
  }
  for (const [of, points] of charts) {
    if (!points || points.length < 2) continue;
    if (!c.lines.has(of)) c.lines.set(of, chart(c));
    const line = c.lines.get(of);
    const minutes = [5, 15, 30].find((m) => points.length <= (m * 60) / history.interval_seconds) || 30;
    const width = Math.round((minutes * 60) / history.interval_seconds) - 1;
    const most = Math.max(0, ...points);
    const from = width + 1 - points.length;
    line.svg.setAttribute("viewBox", "0 0 " + width + " 30");
    line.path.setAttribute("d", points.map((p, i) => (i ? "L" : "M") + (from + i) + " " + (29 - (28 * p) / (most || 1)).toFixed(1)).join(""));
    put(line.words, of + ", " + minutes + " min, at most " + rate(most));
  }
}

// shadowed are the values of a source that only looks.
function shadowed(s) {
  const q = s.queue_messages;
  const token = s.credential;
  const newest = s.shadow.previews[0];
  return [
    ["would send", number(s.shadow.would_deliver)],
    ["would be dead letters", number(s.shadow.would_dead_letter)],
    ["would be deleted unmatched", number(s.shadow.would_delete)],
    ["would stay in the queue", number(s.shadow.would_retain)],
    ["seen", number(s.shadow.seen)],
    ["backlog", q && q.active !== undefined ? number(q.active) : "not told"],
    ["last look", s.shadow.last_peek ? span(since(s.shadow.last_peek)) + " ago, " + s.shadow.head + " there" : "–"],
    ["newest", newest ? newest.message_id + ": " + (newest.deliveries.map((d) => (d.reason ? "rejected by " : "") + d.sink + (d.target ? " " + d.target : "")).join(", ") || newest.end) : "–"],
    ["token ends in", token && token.expires ? span(-since(token.expires)) : "never"],
  ];
}

let tick = 0;

function render(status) {
  tick++;
  put($("process"), status.instance + " · " + status.version + " · up " + span(since(status.started)) + " · configuration " + status.configuration.generation + " (" + status.configuration.digest.slice(0, 8) + ")");
  const problems = [];
  const wrong = (who, text) => problems.push([who, text]);
  if (status.configuration.last_error) wrong("The last reload was refused", status.configuration.last_error.text);

  for (const s of status.sources) {
    const c = card("source", s.name, "sources");
    const q = s.queue_messages;
    const token = s.credential;
    const shadow = s.shadow;
    const pairs = shadow ? shadowed(s) : [
      ["received, last minute", rate(s.received_per_second)],
      ["backlog", q && q.active !== undefined ? number(q.active) : "not told"],
      ["in flight", number(s.balance.in_flight)],
      ["age at receive", s.oldest_message_age_seconds === undefined ? "–" : span(s.oldest_message_age_seconds)],
      ["to confirm, p50 / p99", latency(s.latency)],
      ["token ends in", token && token.expires ? span(-since(token.expires)) : "never"],
      ["deleted", number(s.balance.deleted)],
      ["returned", number(s.balance.returned)],
      ["dead letters", number(sum(s.dead_lettered))],
    ];
    let look = looks[s.state] || "warn";
    if (look === "good" && s.reason) look = "warn";
    show(c, look, s.state, s.reason || (shadow ? "shadow: would send " + number(shadow.would_deliver) + " of " + number(shadow.seen) + " seen; nothing is received, sent or deleted" : ""), pairs);
    if (look === "bad" || s.state === "paused") wrong("Source " + s.name + " is " + s.state, s.reason || "");
    else if (s.reason) wrong("Source " + s.name, s.reason);
    if (token && token.last_error) wrong("The credential of source " + s.name, token.last_error.text);
    if (!s.balance.exact) wrong("The balance of source " + s.name, "received messages that are neither deleted nor returned nor in flight: report it");
    draw(c, history && !shadow ? [["received", history.sources[s.name]]] : []);
    if (!c.button) {
      c.button = element("button");
      c.button.type = "button";
      c.button.addEventListener("click", () => steer(s.name, c.button.dataset.does));
      c.root.append(c.button);
    }
    c.button.hidden = !status.admin;
    c.button.dataset.does = s.state === "paused" ? "resume" : "pause";
    put(c.button, s.state === "paused" ? "Resume" : "Pause");
    c.button.setAttribute("aria-label", c.button.textContent + " source " + s.name);
  }

  for (const r of status.routes) {
    const c = card("route", r.name, "routes");
    const pairs = r.to.flatMap((t) => [
      ["to " + t.sink + (t.required ? "" : ", optional") + ", last minute / in all", rate(t.delivered_per_second) + " / " + number(t.delivered)],
      ["to " + t.sink + ", p50 / p99", latency(t.latency)],
    ]);
    show(c, "", "", "", pairs);
    const points = history && history.routes[r.name];
    draw(c, points ? r.to.map((t) => ["to " + t.sink, points[t.sink]]) : []);
  }

  for (const s of status.sinks) {
    const c = card("sink", s.name, "sinks");
    show(c, looks[s.state] || "warn", s.state, s.reason, [
      ["type", s.type],
      ["delivered, last minute", rate(s.delivered_per_second)],
      ["in all", number(s.delivered)],
      ["latency, p50 / p99", latency(s.latency)],
      ["failed tries", number(sum(s.failed))],
      ["in this state for", span(since(s.since))],
    ]);
    if (s.state !== "up" && s.state !== "idle") wrong("Sink " + s.name + " is " + s.state, s.reason || "");
    draw(c, history && s.state !== "idle" ? [["delivered", history.sinks[s.name]]] : []);
  }

  for (const [key, c] of cards) {
    if (c.seen !== tick) { // gone with a reload
      c.root.remove();
      cards.delete(key);
    }
  }
  tell(problems);
  $("operator").hidden = !status.admin;
  $("closed").hidden = status.admin;
  put($("closed"), status.admin ? "" : status.admin_listen ? "Pause and resume at " + status.admin_listen + " (server.admin_listen): the status page is there too." : "server.admin_token is not set, so nothing can be paused or resumed here.");
  const state = $("state");
  put(state, problems.length ? problems.length + (problems.length === 1 ? " problem" : " problems") : status.state);
  state.className = "badge " + (problems.length ? "bad" : looks[status.state] || "good");
  document.title = (problems.length ? "(" + problems.length + ") " : "") + "mnsrelay " + status.instance;
  lines(status);
}

// tell lists what is wrong; the list is left alone where nothing has changed.
function tell(problems) {
  const text = JSON.stringify(problems);
  if ($("problems").dataset.text === text) return;
  $("problems").dataset.text = text;
  $("problems").replaceChildren(...problems.map(([who, what]) => element("p", "", element("b", "", who), what ? ": " + what : "")));
}

// lines draws the ways from sources over routes to sinks.
function lines(status) {
  const svg = $("lines");
  const box = $("way").getBoundingClientRect();
  const down = new Set(status.sinks.filter((s) => s.state !== "up" && s.state !== "idle").map((s) => s.name));
  const flowing = new Set(status.sources.filter((s) => s.received_per_second > 0).map((s) => s.name));
  const stuck = new Set(status.sources.filter((s) => looks[s.state] === "bad").map((s) => s.name));
  const paths = [];
  const join = (from, to, className) => {
    const a = cards.get(from), b = cards.get(to);
    if (!a || !b) return;
    const ra = a.root.getBoundingClientRect(), rb = b.root.getBoundingClientRect();
    const x1 = ra.right - box.left, y1 = ra.top + ra.height / 2 - box.top;
    const x2 = rb.left - box.left, y2 = rb.top + rb.height / 2 - box.top;
    const middle = (x1 + x2) / 2;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`);
    path.setAttribute("class", className);
    paths.push(path);
  };
  for (const r of status.routes) {
    for (const from of r.from) join("source " + from, "route " + r.name, stuck.has(from) ? "stuck" : flowing.has(from) ? "flows" : "");
    for (const t of r.to) join("route " + r.name, "sink " + t.sink, down.has(t.sink) ? "stuck" : t.delivered_per_second > 0 ? "flows" : "");
  }
  svg.replaceChildren(...paths);
}

function failures(list) {
  $("no-failures").hidden = list.length > 0;
  $("failures").hidden = list.length === 0;
  const text = JSON.stringify(list);
  const body = $("failures").tBodies[0];
  if (body.dataset.text === text) return;
  body.dataset.text = text;
  body.replaceChildren(...list.map((f) => {
    const cells = [new Date(f.time).toLocaleTimeString("en-GB"), f.source, f.sink ? (f.route ? f.route + " → " : "") + f.sink : "–", f.message_id, String(f.attempt), f.reason, f.text];
    return element("tr", "", ...cells.map((text) => element("td", "", text)));
  }));
}

// steer pauses or resumes a source.
async function steer(name, does) {
  const token = $("token").value;
  const said = $("said");
  if (!token) {
    put(said, "Write the admin token first.");
    said.className = "bad";
    $("token").focus();
    return;
  }
  try {
    const answer = await fetch("api/v1/sources/" + encodeURIComponent(name) + "/" + does, { method: "POST", headers: { Authorization: "Bearer " + token } });
    const body = await answer.json();
    put(said, answer.ok ? (does === "pause" ? "Paused " : "Resumed ") + name + "." : "Not done: " + body.detail);
    said.className = answer.ok ? "good" : "bad";
    ask();
  } catch (e) {
    put(said, "Not done: no answer from the relay.");
    said.className = "bad";
  }
}

async function json(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(path + " answers " + answer.status);
  return answer.json();
}

let asking = false;
let rounds = 0;

async function ask() {
  if (asking) return;
  asking = true;
  try {
    if (rounds % 10 === 0) history = await json("api/v1/history");
    const [status, errors] = await Promise.all([json("api/v1/status"), json("api/v1/errors?limit=20")]);
    rounds++;
    answered = Date.now();
    last = status;
    render(status);
    failures(errors.errors);
  } catch (e) {
    const gone = Math.round((Date.now() - answered) / 1000);
    put($("state"), "no answer for " + gone + " s");
    $("state").className = "badge bad";
    tell([["The relay does not answer", "for " + (gone < 10 ? "some" : Math.floor(gone / 10) * 10) + " seconds; what is shown is old"]]);
  } finally {
    asking = false;
  }
}

$("operator").addEventListener("submit", (e) => e.preventDefault());
window.addEventListener("resize", () => last && lines(last));
setInterval(() => document.hidden || ask(), 1000);
document.addEventListener("visibilitychange", () => document.hidden || ask());
ask();
