// The table

// Rows that are made at a time, as one scrolls to them: thousands at once take browsers seconds.
const ROWS = 200;
const any = (of) => tensors.some((t) => of(t));
const columns = [
  { title: "Tensor", value: (t) => t.name, cell: (t) => breakable(t.name), css: "name" },
  { title: "#", value: (t) => t.index + 1, number: true },
  { title: "Format", value: (t) => t.format, cell: (t) => formatLabel(t.format) },
  { title: "Bits/weight", value: (t) => t.bits, number: true, text: (x) => fixed(x, 3) },
  { title: "Cosine", value: (t) => t.cosine, number: true, text: (x) => fixed(x, 5) },
  { title: "SQNR dB", value: (t) => t.sqnr, number: true, text: (x) => fixed(x, 2) },
  any((t) => known(t.error)) && {
    title: "Output error",
    value: (t) => t.error,
    number: true,
    text: (x) => (known(x) ? x.toPrecision(3) : "–"),
  },
  any((t) => known(t.outputCosine)) && {
    title: "Output cosine",
    value: (t) => t.outputCosine,
    number: true,
    text: (x) => fixed(x, 5),
  },
  { title: "Bytes", value: (t) => t.bytes, number: true, text: count },
  { title: "Weights", value: (t) => t.weights, number: true, text: count },
  { title: "Shape", value: (t) => t.shape },
  { title: "Reason", value: (t) => t.reason, css: "why" },
  { title: "Dtype", value: (t) => t.dtype },
  {
    title: "Group",
    value: (t) => (t.group === "row" ? Infinity : t.group),
    number: true,
    text: (x) => (x === Infinity ? "row" : (x ?? "–")),
  },
  { title: "Scheme", value: (t) => t.scheme },
  { title: "Method", value: (t) => t.method },
  any((t) => t.transform) && { title: "Spatial", value: (t) => t.transform },
  any((t) => t.ladder.length > 0) && { title: "Ladder steps", value: (t) => t.ladder.length, number: true },
].filter(Boolean);

const rows = new Array(tensors.length);
const collator = new Intl.Collator("en", { numeric: true });
const state = { column: columns[1], down: false, found: [] };
const body = element("tbody");
const scroller = at("tensor-table").parentElement;

function row(t) {
  rows[t.index] ??= element(
    "tr",
    { "data-index": t.index },
    ...columns.map((column, i) => {
      const value = column.value(t);
      const content =
        column.cell?.(t) ?? (column.text ? column.text(value) : value === "" || value == null ? "–" : value);
      const css = [column.css, column.number && "number"].filter(Boolean).join(" ");
      return element(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: css }, content);
    }),
  );
  return rows[t.index];
}

function shown() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (t) =>
    `${t.name}\n${t.format}\n${t.dtype}\n${t.method}\n${t.scheme}\n${t.reason}`.toLowerCase();
  const found =
    words.length === 0 ? [...tensors] : tensors.filter((t) => words.every((word) => text(t).includes(word)));
  const { value, number } = state.column;
  const sign = state.down ? -1 : 1;
  // What was not measured stands last, whichever way.
  const missing = (x) => (number ? typeof x !== "number" || Number.isNaN(x) : x === "" || x == null);
  return found.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y) || a.index - b.index;
    const order = !number ? collator.compare(x, y) : x < y ? -1 : x > y ? 1 : 0;
    return sign * order || a.index - b.index;
  });
}

function more(rows) {
  const fragment = document.createDocumentFragment();
  const from = body.childElementCount;
  for (const t of state.found.slice(from, from + rows)) fragment.append(row(t));
  body.append(fragment);
}

function fill() {
  state.found = shown();
  body.replaceChildren();
  more(ROWS);
  scroller.scrollTop = 0;
  at("tensor-table").setAttribute("aria-rowcount", state.found.length + 1);
  at("count").textContent = `${count(state.found.length)} of ${plural(tensors.length, "tensor")}`;
}

function table() {
  const heads = columns.map((column) => {
    const sort = () => {
      state.down = state.column === column && !state.down;
      state.column = column;
      mark();
      fill();
    };
    const css = [column.css, column.number && "number"].filter(Boolean).join(" ");
    return element(
      "th",
      { scope: "col", class: css },
      element("button", { type: "button", onclick: sort }, column.title),
    );
  });
  const mark = () =>
    heads.forEach((head, i) => {
      if (columns[i] === state.column)
        head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  mark();
  at("tensor-table").append(element("thead", {}, element("tr", {}, ...heads)), body);
  let soon = 0;
  at("filter").addEventListener("input", () => {
    clearTimeout(soon);
    soon = setTimeout(fill, 60);
  });
  scroller.addEventListener(
    "scroll",
    () => {
      if (scroller.scrollTop + 2 * scroller.clientHeight > scroller.scrollHeight) more(ROWS);
    },
    { passive: true },
  );
  fill();
}

function filterBy(text) {
  at("filter").value = text;
  fill();
  at("tensors").scrollIntoView({ block: "start" });
}

function showRow(t) {
  hideTip();
  if (!state.found.includes(t)) {
    at("filter").value = "";
    fill();
  }
  more(state.found.indexOf(t) + 1 - body.childElementCount);
  for (const other of body.querySelectorAll(".chosen")) other.classList.remove("chosen");
  row(t).classList.add("chosen");
  row(t).scrollIntoView({ block: "center" });
}
