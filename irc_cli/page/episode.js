/* One episode: its strip of turns, and its conversation. */
const ROWS = [["tier", "tier"], ["reward", "raw reward"], ["value", "calibrated"], ["return_part", "return part"], ["outcome_part", "outcome part"], ["advantage", "advantage"]];
const AGAINST = 1, FLIPS = 2, ERROR = 4;
const COUNT_LONG = 4000; // characters; longer messages scroll in their own box

const tierOf = (row, turn) => index.tiers[row.turns.tier[turn]].tier;
const turnRef = (row, turn) => `#${row.ref}/${turn}`;

function strip(row) {
  const turns = row.turns.tier.length;
  const head = element("tr", {}, element("th", { scope: "col" }, "turn"));
  for (let k = 0; k < turns; k++) {
    head.append(element("th", { scope: "col", "data-turn": k }, element("button", { type: "button", "aria-label": `go to turn ${k}`, onclick: () => goTo(row, k) }, String(k))));
  }
  const body = ROWS.map(([name, label]) => element("tr", {}, element("th", { scope: "row" }, label), ...row.turns[name].map((_, k) => stripCell(row, name, k))));
  return element("div", { class: "strip", tabindex: "0", role: "region", "aria-label": "Turns" }, element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
}

function stripCell(row, name, turn) {
  const value = row.turns[name][turn];
  if (name === "tier") return element("td", { "data-turn": turn }, element("div", { class: "tiername", dir: "auto", title: tierOf(row, turn) }, tierOf(row, turn)));
  const clash = name === "advantage" && row.turns.marks[turn] & AGAINST;
  const text = (clash ? "\u26a0\ufe0e " : "") + signed(value);
  return element("td", { class: `${direction(value)}${clash ? " clash" : ""}`, "data-turn": turn, title: clash ? "pushed against the value of its tier" : null }, text);
}

function callElement(call, gold, telling) {
  const parts = [element("p", { class: "callname" }, element("code", { dir: "auto" }, call.name), call.failed ? element("span", { class: "failed-note" }, " \u2715 failed") : null)];
  parts.push(pre(call.arguments));
  if (call.problem) parts.push(element("p", { class: "failed-note" }, `Arguments can't be read: ${call.problem}`));
  parts.push(...goldNote(call, gold, telling));
  if (call.result !== null) {
    const size = call.result.length;
    parts.push(foldable(`${call.failed ? `Result: failed (${call.failed})` : "Result"}, ${size.toLocaleString("en")} characters`, call.result, size < 600));
  }
  return element("div", { class: "call" }, parts);
}

/* How a call compares with the gold actions. */
function goldNote(call, gold, telling) {
  if (gold === null) return [];
  if (call.match === "full") return [element("p", { class: "quiet" }, `\u2713 Equals gold action ${call.gold + 1}.`)];
  if (call.taken) return [element("p", { class: "quiet" }, `Equals gold action ${call.nearest + 1}, which another call has met.`)];
  if (!call.differences) return [];
  const cells = ["argument", "expected", "called with", "rule that decided"].map((name) => element("th", { scope: "col" }, name));
  const rows = call.differences.map(([path, expected, actual, rule]) => element("tr", {},
    element("td", {}, element("code", { dir: "auto" }, path)),
    element("td", { dir: "auto" }, rule.startsWith("extra") ? "\u2013" : expected),
    element("td", { dir: "auto" }, rule.startsWith("missing") ? "\u2013" : actual), element("td", {}, rule)));
  const table = element("table", { class: "diff" }, element("thead", {}, element("tr", {}, cells)), element("tbody", {}, rows));
  const count = call.differences.length + (call.more || 0);
  const title = `Differs from gold action ${call.nearest + 1} in ${count === 1 ? "one place" : `${count} places`}`;
  const more = call.more ? `and ${call.more} more` : null;
  return [element("details", { class: "differs", open: telling || call.match === "partial" }, element("summary", {}, title), table, more)];
}

function textElement(text) {
  return element("p", { class: `text${text.length > COUNT_LONG ? " long" : ""}`, dir: "auto", tabindex: text.length > COUNT_LONG ? "0" : null }, inParts(text));
}

function turnElement(row, entry, gold) {
  const k = entry.turn, turns = row.turns, marks = turns.marks[k];
  const numbers = `raw ${signed(turns.reward[k])}, calibrated ${signed(turns.value[k])}, advantage ${signed(turns.advantage[k])}`;
  const head = element("p", { class: "turn-head" }, element("a", { href: turnRef(row, k) }, element("b", {}, `Turn ${k}`)), tag(tierOf(row, k)), element("span", {}, numbers),
    marks & AGAINST ? element("span", { class: "clash-note" }, "\u26a0\ufe0e pushed against its value") : null,
    marks & FLIPS ? element("span", {}, "\u21c5 raw rewards push the other way") : null);
  const parts = [head];
  if (entry.reasoning) parts.push(foldable("Reasoning", entry.reasoning, false));
  if (entry.text) parts.push(textElement(entry.text));
  const telling = index.tiers[turns.tier[k]].value !== 0; // the tier has a value: show why the turn got it
  for (const call of entry.calls) parts.push(callElement(call, gold, telling));
  return element("section", { class: "turn", "data-turn": k, "aria-label": `turn ${k}` }, parts);
}

function messageElement(entry) {
  const system = entry.role === "system" || entry.role === "developer";
  const title = `${entry.role}, ${entry.text.length.toLocaleString("en")} characters`;
  const body = system ? [foldable(title, entry.text, false)] : [element("p", { class: "turn-head" }, entry.role), textElement(entry.text)];
  if (entry.own_calls) body.push(foldable("calls of the user", entry.own_calls, true));
  return element("div", { class: "message" }, body);
}

const entryElement = (row, entry, gold) => (entry.turn === undefined ? messageElement(entry) : turnElement(row, entry, gold));

function goldElement(found) {
  if (found.gold === null) return element("p", { class: "quiet" }, "The trace does not say which calls the task expects.");
  const items = found.gold.map((action) => element("li", {}, element("code", { dir: "auto" }, action.name), " ",
    element("span", { class: "quiet" }, action.met ? `${action.met[2] === "full" ? "\u2713 met" : "\u25d0 met in part"} at turn ${action.met[0]}` : "\u2715 never met"), pre(action.arguments)));
  if (!items.length) return element("p", { class: "quiet" }, "The task expects no call.");
  return element("details", {}, element("summary", {}, `Gold actions: ${items.length}, ${found.gold.filter((a) => a.met && a.met[2] === "full").length} met`), element("ol", { class: "gold-list" }, items));
}

/* How the trace says that the episode ended, and what the agent had to tell. */
function factsElement(found) {
  const facts = [];
  if (found.stop) facts.push(`Ended: ${found.stop}.`);
  for (const [name, value] of Object.entries(found.rewards || {})) facts.push(`${name} ${value}.`);
  if (found.info.length) facts.push(`The agent has to tell: ${found.info.join(", ")}.`);
  return facts.length ? element("p", { class: "legend", dir: "auto" }, facts.join(" ")) : null;
}

function episodeHead(row, buttons) {
  return element("div", { class: "episode-head" }, element("h3", { dir: "auto" }, `${row.task}, trial ${row.ref.split("/").pop()}`), stateOf(row.state),
    element("span", { class: "quiet" }, `outcome ${row.outcome === null ? "unknown" : row.outcome}, ${row.turns.tier.length} turns, ${row.policy || ""}`), element("span", { class: "right" }, buttons));
}

async function showEpisode(row, turn) {
  const found = await conversation(row);
  const buttons = row.parting && found ? [element("button", { type: "button", onclick: () => { location.hash = `${row.ref}/${turn || 0}/beside`; } }, "Beside a sibling")] : [];
  const legend = element("p", { class: "legend" }, "Return part + outcome part = advantage. \u26a0\ufe0e in a dashed box: pushed against the value of its tier.");
  const parts = [episodeHead(row, buttons), strip(row), legend];
  if (found) parts.push(factsElement(found));
  if (row.parting && found) parts.push(partingNote(row));
  if (found) parts.push(goldElement(found), ...found.entries.map((entry) => entryElement(row, entry, found.gold)));
  else parts.push(element("p", {}, "The conversation is not in this file: its trace was not at hand."));
  byId("episode").replaceChildren(...parts.filter(Boolean));
  if (turn !== null) mark(turn);
}

/* Marks a turn in the strip and in the conversation, and scrolls to it. */
function mark(turn, scroll = true) {
  const host = byId("episode");
  for (const node of host.querySelectorAll(".now")) node.classList.remove("now");
  for (const node of host.querySelectorAll(`[data-turn="${turn}"]`)) node.classList.add("now");
  const cell = host.querySelector(`.strip th[data-turn="${turn}"]`);
  if (cell) {
    const box = cell.closest(".strip");
    box.scrollLeft = cell.offsetLeft - box.clientWidth / 2;
  }
  const target = host.querySelector(`.turn[data-turn="${turn}"]`);
  if (target && scroll) target.scrollIntoView({ block: "start" });
}
