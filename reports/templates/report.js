"use strict";
// Click a heading: sort its table by it, again: the other way round. Empty cells stay last.
for (const th of document.querySelectorAll("th")) {
  th.querySelector("button").addEventListener("click", () => {
    const body = th.closest("table").tBodies[0], i = th.cellIndex;
    const down = th.getAttribute("aria-sort") === "ascending";
    for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[i].dataset.v ?? row.cells[i].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
