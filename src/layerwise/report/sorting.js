for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort !== "descending";
      for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const text = row => row.cells[column].textContent.trim();
      const value = row => parseFloat(text(row));
      const order = (a, b) => isNaN(value(a)) || isNaN(value(b))
        ? isNaN(value(b)) - isNaN(value(a)) || text(b).localeCompare(text(a)) : value(a) - value(b);
      body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
    });
  });
}
