/* Two trials of a task side by side, aligned at the first call that differs. */
const places = (found) => found.entries.flatMap((entry) => (entry.calls || []).map((call, i) => ({ turn: entry.turn, i, call })));

function firstDifference(one, two) {
  const mine = places(one), others = places(two);
  let shared = 0;
  while (shared < mine.length && shared < others.length && mine[shared].call.key === others[shared].call.key) shared++;
  return { shared, here: mine[shared], there: others[shared] };
}

function partingNote(row) {
  const sibling = index.byId.get(row.parting.sibling);
  if (!sibling) return null;
  const { shared, here, there } = row.parting;
  const calls = shared === 1 ? "call is" : "calls are";
  const place = (at, of) => (at ? element("a", { href: turnRef(of, at[0]) }, `turn ${at[0]}`) : "no further call");
  return element("p", { class: "parting" }, `The first ${shared} ${calls} the same as in trial ${sibling.ref.split("/").pop()}, which ${sibling.state === "passed" ? "passed" : "failed"}. They part here at `, place(here, row), ", there at ", place(there, sibling), ". ",
    element("a", { href: `#${row.ref}/${here ? here[0] : 0}/beside` }, "See them side by side"));
}

/* The entries before the turn at which the trials diverge, and those from it on. */
function halves(found, place) {
  const at = place ? found.entries.findIndex((entry) => entry.turn === place.turn) : found.entries.length;
  return [found.entries.slice(0, at), found.entries.slice(at)];
}

function siblingsOf(row) {
  return index.episodes.filter((other) => other.task === row.task && other.id !== row.id && other.chunk !== null);
}

async function showBeside(row, chosen) {
  const sibling = chosen || index.byId.get(row.parting && row.parting.sibling) || siblingsOf(row)[0];
  if (!sibling) return showEpisode(row, 0);
  const found = [await conversation(row), await conversation(sibling)];
  const { shared, here, there } = firstDifference(...found);
  const [mine, others] = [halves(found[0], here), halves(found[1], there)];
  const choice = element("select", { "aria-label": "Sibling", onchange: (event) => { location.hash = `${row.ref}/0/beside/${event.target.value}`; } },
    siblingsOf(row).map((other) => element("option", { value: other.ref.split("/").pop(), selected: other === sibling }, `trial ${other.ref.split("/").pop()}: ${other.state}`)));
  const back = element("button", { type: "button", onclick: () => { location.hash = row.ref; } }, "One episode");
  const heads = element("div", { class: "pair heads" }, [row, sibling].map((one) => element("h4", {}, stateOf(one.state), element("a", { href: `#${one.ref}` }, `trial ${one.ref.split("/").pop()}`))));
  const both = (sides) => element("div", { class: "pair" }, sides.map((part, i) => element("div", {}, part.map((entry) => entryElement(i ? sibling : row, entry, found[i].gold)))));
  const before = element("details", {}, element("summary", {}, shared ? `Before they part: the first ${shared} calls are the same` : "Before they part"), both([mine[0], others[0]]));
  byId("episode").replaceChildren(
    element("div", { class: "episode-head" }, element("h3", { dir: "auto" }, `${row.task}, two trials`), element("span", { class: "right" }, choice, back)),
    goldElement(found[0]), before, heads,
    element("p", { class: "parting" }, here && there ? `The first call that differs: ${here.call.name} at turn ${here.turn}, ${there.call.name} at turn ${there.turn}.` : "One trial ends where the other calls on."),
    both([mine[1], others[1]]));
  for (const turn of byId("episode").querySelectorAll(".pair > div > .turn:first-child")) {
    turn.classList.add("split-here");
    for (const part of turn.querySelectorAll(".differs")) part.open = true;
  }
  byId("episode").scrollIntoView({ block: "start" });
}
