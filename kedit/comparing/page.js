"use strict";
// A click on a column's head sorts each model's contestants by it, best first, then the other way round.
// What was not measured stands behind the others, and those without figures stay last.
function sort(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const first = head.dataset.first || "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const way = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of table.tHead.rows[0].cells) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way);
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.classList.contains("done"));
    const value = (row) => row.cells[column].dataset.value;
    rows.sort((one, two) => {
      const [a, b] = [value(one), value(two)];
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = column === 0 ? a.localeCompare(b) : Number(a) - Number(b);
      return way === "ascending" ? difference : -difference;
    });
    const after = [...body.rows].find((row) => row.classList.contains("out")) || null;
    for (const row of rows) body.insertBefore(row, after);
  }
}
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}
// paper does not unfold
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
