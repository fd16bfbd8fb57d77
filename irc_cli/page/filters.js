/* Which episodes and turns are listed. */
const PAGE = 200; // episodes listed at once
let hits = [], textHits = null, searching = 0;

const selected = () => ({
  task: byId("f-task").value.trim(), state: byId("f-state").value, tier: byId("f-tier").value, tool: byId("f-tool").value,
  end: byId("f-end").value, sign: byId("f-sign").value, error: byId("f-error").checked, text: byId("f-text").value.trim().toLowerCase(),
});

/* The turns of an episode that match the filters on turns; null: no such filter is set. */
function matchingTurns(row, want) {
  const tests = [];
  if (want.tier !== "") tests.push((k) => row.turns.tier[k] === Number(want.tier));
  if (want.tool !== "") tests.push((k) => row.turns.tools[k].includes(Number(want.tool)));
  if (want.sign) tests.push((k) => row.turns.marks[k] & (want.sign === "against" ? AGAINST : FLIPS));
  if (want.error) tests.push((k) => row.turns.marks[k] & ERROR);
  if (!tests.length) return null;
  return row.turns.tier.map((_, k) => k).filter((k) => tests.every((test) => test(k)));
}

function listed(want) {
  const rows = [];
  for (const row of index.episodes) {
    if (want.task && !row.task.includes(want.task)) continue;
    if ((want.state && row.state !== want.state) || (want.end && row.status !== want.end)) continue;
    if (textHits && !textHits.has(row.id)) continue;
    const turns = matchingTurns(row, want);
    if (turns && !turns.length) continue;
    rows.push({ row, turns });
  }
  return rows;
}

function showHits(shown = PAGE) {
  const items = hits.slice(0, shown).map(({ row, turns }) => {
    const target = turns ? turnRef(row, turns[0]) : `#${row.ref}`;
    return element("li", {}, element("a", { href: target, "data-ref": row.ref, "aria-current": current && current.row === row ? "true" : null },
      element("span", { class: row.state, role: "img", "aria-label": row.state }, SIGNS[row.state]), element("span", { dir: "auto" }, `${row.task}, trial ${row.ref.split("/").pop()}`), element("span", { class: "quiet" }, String(row.turns.tier.length)),
      turns ? element("small", {}, `turn ${turns.slice(0, 8).join(", ")}${turns.length > 8 ? ", \u2026" : ""}`) : null));
  });
  if (hits.length > shown) items.push(element("li", {}, element("button", { type: "button", onclick: () => showHits(shown + PAGE) }, `${hits.length - shown} more`)));
  byId("hits").replaceChildren(...items);
}

function applyFilters() {
  const want = selected();
  hits = listed(want);
  const turns = hits.reduce((sum, hit) => sum + (hit.turns ? hit.turns.length : 0), 0);
  const episodes = `${hits.length.toLocaleString("en")} of ${index.episodes.length.toLocaleString("en")} episodes`;
  byId("found").textContent = turns ? `${turns.toLocaleString("en")} ${turns === 1 ? "turn" : "turns"} in ${episodes}` : episodes;
  showHits();
}

/* Searches all conversations, chunk by chunk; a newer search cancels it. */
async function search() {
  const number = ++searching, text = selected().text;
  textHits = text ? new Set() : null;
  if (text) {
    let last = -1;
    for await (const [id, content, at] of searchable()) {
      if (number !== searching) return;
      if (content.includes(text)) textHits.add(id);
      if (at !== last) { last = at; byId("found").textContent = `searching, ${at + 1} of ${packedChunks().length}`; }
    }
  }
  applyFilters();
}

function clearFilters() {
  byId("filters").reset();
  searching++;
  textHits = null;
  applyFilters();
}

function setUpFilters() {
  const inOrder = (names) => names.map((name, i) => [name, i]).sort((a, b) => (a[0] < b[0] ? -1 : 1));
  byId("f-tier").append(...inOrder(index.tiers.map((tier) => tier.tier)).map(([name, i]) => element("option", { value: i }, name)));
  byId("f-tool").append(...inOrder(index.tools).map(([name, i]) => element("option", { value: i }, name)));
  byId("task-names").append(...[...new Set(index.episodes.map((row) => row.task))].map((task) => element("option", { value: task })));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("change", (event) => { if (event.target.id !== "f-text") applyFilters(); });
  byId("f-task").addEventListener("input", applyFilters);
  let waiting = 0;
  byId("f-text").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 250); });
  byId("f-clear").addEventListener("click", clearFilters);
  for (const link of document.querySelectorAll("a.tier")) link.addEventListener("click", () => {
    clearFilters();
    byId("f-tier").value = String(index.tiers.findIndex((tier) => tier.tier === link.dataset.tier));
    applyFilters();
  });
}
