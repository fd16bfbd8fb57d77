/* The grid of tasks: its sort orders, and the leverage of each task on a tier. */
function setUpTasks() {
  const body = byId("task-table").tBodies[0], rows = [...body.rows];
  const facts = new Map(rows.map((row, place) => {
    const [passed, counted] = row.cells[2].textContent.split("/").map(Number);
    return [row, { place, rate: counted ? passed / counted : 2, mixed: row.classList.contains("idle") ? 1 : 0, task: row.dataset.task }];
  }));
  // A Map, not an object, because a tier may be called "constructor".
  const moved = new Map(Object.entries(index.leverage).map(([task, of]) => [task, new Map(Object.entries(of))]));
  const leverage = (row) => (moved.get(facts.get(row).task) || new Map()).get(byId("task-tier").value) || 0;
  const orders = {
    name: (one, two) => facts.get(one).place - facts.get(two).place,
    hard: (one, two) => facts.get(one).rate - facts.get(two).rate,
    easy: (one, two) => (facts.get(two).rate % 2) - (facts.get(one).rate % 2),
    mixed: (one, two) => facts.get(one).mixed - facts.get(two).mixed,
    leverage: (one, two) => Math.abs(leverage(two)) - Math.abs(leverage(one)),
  };
  const show = () => {
    for (const row of rows) row.cells[4].textContent = signed(leverage(row));
    body.append(...rows.sort((one, two) => orders[byId("task-sort").value](one, two) || orders.name(one, two)));
  };
  byId("task-sort").addEventListener("change", show);
  byId("task-tier").addEventListener("change", show);
  show();
}
