/* Shows what the address names: #task/trial/turn, and #task/trial/turn/beside for two trials. */
let current = null; // { row, turn, beside }

function place() {
  const parts = location.hash.slice(1).split("/");
  const row = index.byRef.get(`${parts[0]}/${parts[1]}`);
  if (!row) return null;
  const turn = parts[2] === undefined || parts[2] === "" ? null : Number(parts[2]);
  return { row, turn: turn !== null && turn < row.turns.tier.length ? turn : null, beside: parts[3] === "beside", sibling: index.byRef.get(`${parts[0]}/${parts[4]}`) };
}

async function follow() {
  const wanted = place();
  if (!wanted) return;
  const same = current && !current.beside && !wanted.beside && current.row === wanted.row;
  current = wanted;
  if (wanted.beside) await showBeside(wanted.row, wanted.sibling);
  else if (same && wanted.turn !== null) mark(wanted.turn);
  else {
    await showEpisode(wanted.row, wanted.turn);
    if (wanted.turn === null) byId("browser").scrollIntoView({ block: "start" });
  }
  markHit(wanted.row);
}

/* Marks the episode in the list, and scrolls the list to it. */
function markHit(row) {
  const box = byId("hits");
  for (const link of box.querySelectorAll("a")) {
    if (link.dataset.ref !== row.ref) { link.removeAttribute("aria-current"); continue; }
    link.setAttribute("aria-current", "true");
    if (link.offsetTop < box.scrollTop || link.offsetTop > box.scrollTop + box.clientHeight - 60) box.scrollTop = link.offsetTop - box.clientHeight / 2;
  }
}

const goTo = (row, turn) => { location.hash = `${row.ref}/${turn}`; };

function stepTurn(by) {
  if (!current) return stepEpisode(1);
  const last = current.row.turns.tier.length - 1;
  goTo(current.row, Math.min(Math.max((current.turn === null ? (by > 0 ? -1 : last + 1) : current.turn) + by, 0), last));
}

function stepEpisode(by) {
  if (!hits.length) return;
  const at = current ? hits.findIndex((hit) => hit.row === current.row) : -1;
  const next = hits[Math.min(Math.max(at + by, 0), hits.length - 1)];
  location.hash = next.row.ref + (next.turns ? `/${next.turns[0]}` : "");
}

const KEYS = { j: () => stepTurn(1), k: () => stepTurn(-1), n: () => stepEpisode(1), p: () => stepEpisode(-1) };

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
}

async function start() {
  if (typeof DecompressionStream === "undefined") { byId("unreadable").hidden = false; return; }
  await openIndex();
  for (const node of document.querySelectorAll(".js")) node.hidden = false;
  setUpFilters();
  setUpTasks();
  applyFilters();
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", follow);
  window.addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("main details")) part.open = true; });
  if (place()) await follow();
  else if (hits.length) await showEpisode(hits[0].row, null);
  document.documentElement.dataset.ready = "true";
}

start();
