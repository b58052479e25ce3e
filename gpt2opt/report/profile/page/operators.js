// A table that is sorted by a click on the heading of a column.
import { element } from "./show.js";

/**
 * columns: [{title, value(row), show(row, cell)}], where show returns text or elements, and may change the cell. sort: {by, down}, the
 * number of a column and the direction; onSort(sort) is called with a new one.
 */
export function drawTable(into, columns, rows, sort, onSort) {
  const heads = columns.map(({ title }, by) => {
    const button = element("button", { type: "button" }, by === sort.by ? `${title} ${sort.down ? "▾" : "▴"}` : title);
    button.addEventListener("click", () => onSort({ by, down: by === sort.by ? !sort.down : by > 0 }));
    return element("th", by === sort.by ? { scope: "col", "aria-sort": sort.down ? "descending" : "ascending" } : { scope: "col" }, button);
  });
  const { value } = columns[sort.by];
  const sorted = [...rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (sort.down ? -1 : 1));
  const lines = sorted.map((row) =>
    element("tr", {}, ...columns.map(({ show }) => {
      const cell = element("td");
      cell.append(...[show(row, cell)].flat());
      return cell;
    })),
  );
  into.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines));
}
