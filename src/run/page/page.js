// The page of one report. Fields that a report lacks are left out.

const report = JSON.parse(document.getElementById("report").textContent);

// Where a block's number stands in a name: after a component that is called like a stack of them.
const BLOCK = /^((?:.*?\.)?(?:[a-z_0-9]*(?:blocks?|layers?|stages?|levels?|blk)|downs?|ups?|h))\.(\d+)(?:\.|$)/i;

const tensors = (report.tensors ?? []).map((tensor, index) => {
  const name = String(tensor.name ?? "");
  const block = BLOCK.exec(name);
  const weights = (tensor.shape ?? []).reduce((product, n) => product * n, 1);
  const kept = tensor.cosine == null && !/^int\d/.test(tensor.format ?? "");
  return {
    index, weights, kept, name: printable(name),
    shape: (tensor.shape ?? []).join(" × "), dtype: tensor.dtype ?? "", format: tensor.format ?? "",
    group: kept ? null : tensor.group_size === 0 ? "row" : tensor.group_size,
    scheme: tensor.scheme ?? "", method: tensor.method ?? "",
    bits: tensor.bits_per_weight, bytes: tensor.bytes, cosine: tensor.cosine, sqnr: tensor.sqnr_db,
    error: tensor.output?.error, outputCosine: tensor.output?.cosine,
    transform: [
      tensor.smoothing != null && `smoothed ${tensor.smoothing}`,
      tensor.rotation != null && `rotated ${tensor.rotation}`,
    ].filter(Boolean).join(", "),
    ladder: Array.isArray(tensor.ladder) ? tensor.ladder : [],
    reason: printable(tensor.reason) + (tensor.kept_non_finite ? " (kept: holds NaN or infinity)" : ""),
    stack: block ? printable(block[1]) : null, depth: block ? Number(block[2]) : null,
  };
});
const gate = known(report.min_cosine) ? report.min_cosine : null;
const kind = (format) => (/^int[248]$/.test(format) ? format : "raw");

// By depth: stacks as they first appear, blocks by number, what is in none at the end.
const stacks = [...new Set(tensors.map((t) => t.stack).filter((stack) => stack !== null))];
const place = new Map(stacks.map((stack, i) => [stack, i]));
const rank = (t) => (t.stack === null ? stacks.length : place.get(t.stack));
const inOrder = [...tensors].sort((a, b) => rank(a) - rank(b) || (a.depth ?? 0) - (b.depth ?? 0) || a.index - b.index);

// Totals

function totals() {
  const total = report.total ?? {};
  // Floats at 16 bits, the rest as it is.
  const fp16 = sum(tensors, (t) => (/^(f|bf)\d/.test(t.dtype) ? 2 * t.weights : t.bytes ?? 0));
  const measured = tensors.filter((t) => known(t.error));
  const times = (whole) =>
    known(whole) && report.output_bytes > 0 ? `${(whole / report.output_bytes).toFixed(2)}×` : "–";
  at("source").textContent = printable(report.source?.name ?? "a model");
  at("subtitle").textContent = `to ${printable(report.output ?? "memory")}`;
  document.title = `${at("source").textContent} – ArrowQuant report`;
  const cards = [
    ["Compression", times(fp16), `against FP16; ${times(report.source_bytes)} against the source`],
    ["Bits per weight", fixed(total.bits_per_weight, 3), `of ${count(total.weights)} weights, scales counted`],
    ["Cosine", fixed(total.cosine, 5), "over all quantized weights"],
    ["SQNR", known(total.sqnr_db) ? `${fixed(total.sqnr_db, 2)} dB` : total.cosine == null ? "–" : "no error", "signal to quantization noise"],
    ["Tensors", count(total.quantized), `quantized; ${count(total.kept)} kept`],
    ["Time", `${fixed(report.seconds, report.seconds < 10 ? 2 : 1)} s`,
      [known(report.threads) && plural(report.threads, "thread"), report.isa].filter(Boolean).join(", ")],
  ];
  if (measured.length > 0) {
    const mean = (of) => sum(measured, of) / measured.length;
    cards.splice(4, 0, ["Mean output error", mean((t) => t.error).toPrecision(3),
      `on the calibration, of ${plural(measured.length, "layer")}; cosine ${fixed(mean((t) => t.outputCosine), 4)}`]);
  }
  at("cards").append(...cards.map(([label, figure, more]) =>
    element("div", {}, element("dt", {}, label), element("dd", { class: "figure" }, figure), element("dd", { class: "more" }, more))));

  const sizes = [["All at FP16", fp16], ["Source", report.source_bytes], ["This file", report.output_bytes, "ours"]];
  const largest = Math.max(...sizes.map((size) => size[1] || 0), 1);
  at("sizes").append(...sizes.map(([label, size, ours]) => {
    const fill = element("div", { class: "fill" });
    fill.style.width = `${(100 * (size || 0)) / largest}%`;
    const share = fp16 > 0 && known(size) ? ` · ${((100 * size) / fp16).toFixed(1)}%` : "";
    return element("div", { class: `size ${ours ?? ""}` }, element("span", {}, label),
      element("div", { class: "track" }, fill), element("span", { class: "amount" }, bytes(size) + share));
  }));

  const notes = [];
  if (report.memory_limit != null) notes.push(`Streamed under a ceiling of ${bytes(report.memory_limit)} of memory.`);
  if (report.streaming_because) notes.push(`It streamed because ${printable(report.streaming_because)}.`);
  if (report.parts) notes.push(`Written as ${plural(report.parts.count, "part")}, ${count(report.parts.resumed)} of them there already.`);
  const wide = tensors.filter((t) => (report.tensors[t.index].f32_scale_tiles ?? []).length > 0).length;
  if (wide > 0) notes.push(`${plural(wide, "tensor")} with scales that did not fit f16.`);
  const broken = tensors.filter((t) => report.tensors[t.index].kept_non_finite).length;
  if (broken > 0) notes.push(`${plural(broken, "tensor")} kept for NaN or infinity.`);
  at("notes").append(...notes.map((note) => element("li", {}, note)));
  at("notes").hidden = notes.length === 0;
}

// Charts

// An axis that ends at 1 and begins where differences can be seen.
function cosineAxis(values) {
  const least = Math.min(1, ...values.filter(known), ...(gate === null ? [] : [gate]));
  const starts = [0.9999, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.5, 0, -1];
  const low = starts.find((start) => least >= start + 0.05 * (1 - start)) ?? -1;
  return { low, high: 1, ticks: [0, 1, 2, 3, 4].map((i) => low + ((1 - low) * i) / 4) };
}
// Tensors that are kept may have 32 or 64 bits, beside which 2 and 4 would look the same.
function bitsAxis(values) {
  const most = Math.max(1, ...values.filter(known));
  const high = [2, 4, 6, 8, 12].find((end) => most <= end) ?? 16;
  const parts = high % 4 === 0 && high !== 12 ? 4 : high === 2 ? 2 : 3;
  const ticks = Array.from({ length: parts + 1 }, (_, i) => (high * i) / parts);
  return { low: 0, high, ticks, cut: most > high };
}

function titled(id, axis, title) {
  const from = axis.low > 0 ? ` from ${axis.low}` : "";
  const cut = axis.cut ? ` – cut off at ${axis.high}` : "";
  at(id).replaceChildren(title, element("small", {}, from + cut));
}

function tensorLines(t) {
  return [
    t.name, `${t.kept ? "kept as " + t.dtype : t.format} · ${fixed(t.bits, 3)} bits/weight · ${bytes(t.bytes)}`,
    t.kept ? "" : `cosine ${fixed(t.cosine, 5)} · SQNR ${fixed(t.sqnr, 2)} dB`,
    known(t.error) ? `output error ${t.error.toPrecision(3)}, cosine ${fixed(t.outputCosine, 5)}` : "",
    t.ladder.length > 0 ? `after ${plural(t.ladder.length, "step")} of the ladder` : "", t.reason,
  ];
}

// Where runs of the same stack, and of the same block in it, begin and end.
function runs(items) {
  const labels = [], edges = [];
  for (const [row, key, text] of [
    [0, (t) => `${rank(t)}.${t.depth}`, (t) => (t.depth === null ? "" : String(t.depth))],
    [1, rank, (t) => t.stack ?? "no block"],
  ]) {
    for (let from = 0, to; from < items.length; from = to) {
      for (to = from + 1; to < items.length && key(items[to]) === key(items[from]); to++);
      labels.push({ from, to, row, text: text(items[from]) });
      if (from > 0 && row === 0) edges.push(from);
    }
  }
  return { labels: labels.filter((label) => label.text), edges };
}

function tensorCharts() {
  const items = at("with-kept").checked ? inOrder : inOrder.filter((t) => !t.kept);
  const common = { items, css: (t) => kind(t.format), lines: tensorLines, pick: showRow, line: null, ...runs(items) };
  if (common.edges.length > items.length / 3 || common.edges.length > 150) common.edges = [];
  const cosine = cosineAxis(items.map((t) => t.cosine)), bits = bitsAxis(items.map((t) => t.bits));
  titled("tensor-cosine-title", cosine, "Cosine");
  titled("tensor-bits-title", bits, "Bits per weight");
  chart(at("tensor-cosine"), { ...common, ...cosine, value: (t) => t.cosine, line: gate, label: `Cosine of ${plural(items.length, "tensor")}` });
  chart(at("tensor-bits"), { ...common, ...bits, value: (t) => t.bits, label: `Bits per weight of ${plural(items.length, "tensor")}` });
}

const depths = [];
for (const t of inOrder) {
  const last = depths.at(-1);
  if (last && rank(last) === rank(t) && last.depth === t.depth) last.tensors.push(t);
  else depths.push({ stack: t.stack, depth: t.depth, tensors: [t] });
}
for (const group of depths) {
  const with_cosine = group.tensors.filter((t) => known(t.cosine));
  const weights = sum(group.tensors, (t) => t.weights), measured = sum(with_cosine, (t) => t.weights);
  group.bytes = sum(group.tensors, (t) => t.bytes ?? 0);
  group.bits = weights > 0 ? (8 * group.bytes) / weights : null;
  group.cosine = measured > 0 ? sum(with_cosine, (t) => t.cosine * t.weights) / measured : null;
  group.worst = with_cosine.reduce((worst, t) => (worst === null || t.cosine < worst.cosine ? t : worst), null);
  group.label = group.stack === null ? "no block" : `${group.stack}.${group.depth}`;
  const formats = new Map();
  for (const t of group.tensors) formats.set(kind(t.format), (formats.get(kind(t.format)) ?? 0) + t.weights);
  group.format = [...formats].reduce((most, entry) => (entry[1] > most[1] ? entry : most))[0];
}

function depthCharts() {
  const lines = (group) => [
    group.label, `${plural(group.tensors.length, "tensor")} · ${fixed(group.bits, 3)} bits/weight · ${bytes(group.bytes)}`,
    group.worst && `mean cosine ${fixed(group.cosine, 5)}`,
    group.worst && `lowest ${fixed(group.worst.cosine, 5)}: ${group.worst.name}`,
  ];
  const common = {
    items: depths, css: (group) => group.format, lines, line: null, ...runs(depths),
    pick: (group) => group.stack !== null && filterBy(`${group.label}.`),
  };
  common.edges = common.edges.filter((i) => rank(depths[i]) !== rank(depths[i - 1]));
  const cosine = cosineAxis(depths.map((group) => group.worst?.cosine)), bits = bitsAxis(depths.map((group) => group.bits));
  titled("depth-cosine-title", cosine, "Cosine");
  titled("depth-bits-title", bits, "Bits per weight");
  chart(at("depth-cosine"), { ...common, ...cosine, value: (g) => g.cosine, mark: (g) => g.worst?.cosine, line: gate, label: `Cosine of ${plural(depths.length, "block")}` });
  chart(at("depth-bits"), { ...common, ...bits, value: (g) => g.bits, label: `Bits per weight of ${plural(depths.length, "block")}` });
}

function legend() {
  const found = ["int2", "int4", "int8", "raw"].filter((name) => tensors.some((t) => kind(t.format) === name));
  const entries = found.map((name) => element("li", {}, element("i", { class: `key ${name}` }), name === "raw" ? "kept" : name));
  if (gate !== null) entries.push(element("li", {}, element("i", { class: "key gate" }), `gate ${gate}`));
  at("legend").append(...entries);
  at("order-hint").textContent = stacks.length > 0
    ? "In order of depth: a bar a tensor, blocks by the numbers in their names. Click a bar to see its row; with the keyboard, arrows move and Enter goes there."
    : "In the order of the model: a bar a tensor. Click a bar to see its row; with the keyboard, arrows move and Enter goes there.";
}

// The ladder

const rung = (format, spatial) => (format === "raw" ? "kept" : format) + (spatial === true ? " spatial" : "");
function ladder() {
  const climbed = tensors.filter((t) => t.ladder.length > 0);
  const gated = gate !== null || climbed.length > 0 || tensors.some((t) => Array.isArray(report.tensors[t.index].ladder));
  if (!gated) return;
  at("ladder").hidden = false;
  const kept = climbed.filter((t) => t.kept).length;
  at("ladder-summary").textContent =
    (gate === null ? "" : `Each tensor was to have a cosine of ${gate} at least. `) +
    (climbed.length === 0
      ? "All passed at the first try."
      : `${plural(climbed.length, "tensor")} of ${count(tensors.length)} did not pass at the first try; ${count(kept)} of them ended kept.`);
  at("ladder-scroll").hidden = climbed.length === 0;
  if (climbed.length === 0) return;
  const rungs = new Map();
  for (const t of climbed) {
    t.ladder.forEach((attempt, i) => {
      const next = t.ladder[i + 1];
      const to = next ? rung(next.format, next.spatial) : rung(t.format, t.transform !== "");
      const step = `${rung(attempt.format, attempt.spatial)} → ${to}`;
      rungs.set(step, (rungs.get(step) ?? 0) + 1);
    });
  }
  at("ladder-rungs").append(...[...rungs].sort((a, b) => b[1] - a[1]).map(([step, n]) => element("li", {}, `${step}: ${count(n)}`)));
  const body = element("tbody");
  for (const t of climbed) {
    const steps = t.ladder.flatMap((attempt) => [
      element("span", { class: "step failed", title: attempt.measure ? `cosine of the ${attempt.measure}` : null },
        `${rung(attempt.format, attempt.spatial)} ${fixed(attempt.cosine, 4)}${known(attempt.min_cosine) ? ` < ${attempt.min_cosine}` : ""}`),
      element("span", { class: "arrow" }, "→"),
    ]);
    const measures = new Set(t.ladder.map((attempt) => attempt.measure));
    const reached = measures.has("output") && known(t.outputCosine) ? t.outputCosine : t.cosine;
    const end = element("span", { class: "step" }, formatLabel(t.format));
    if (known(reached)) end.append(fixed(reached, 4));
    body.append(element("tr", {},
      element("th", { scope: "row", class: "name" }, element("button", { class: "link", type: "button", onclick: () => showRow(t) }, breakable(t.name))),
      element("td", {}, element("div", { class: "steps" }, ...steps, end)),
      element("td", {}, [...measures].filter(Boolean).map(printable).join(", "))));
  }
  const head = ["Tensor", "Steps", "Cosine of"].map((text) => element("th", { scope: "col" }, text));
  at("ladder-table").append(element("thead", {}, element("tr", {}, ...head)), body);
}

// Reasons

function reasons() {
  const groups = new Map();
  for (const t of tensors) {
    const group = groups.get(t.reason) ?? { reason: t.reason, tensors: 0, weights: 0, bytes: 0, formats: new Map() };
    groups.set(t.reason, group);
    group.tensors++;
    group.weights += t.weights;
    group.bytes += t.bytes ?? 0;
    group.formats.set(t.format, (group.formats.get(t.format) ?? 0) + 1);
  }
  const head = [["Reason"], ["Formats"], ["Tensors", "number"], ["Weights", "number"], ["Bytes", "number"]];
  const body = element("tbody");
  for (const group of [...groups.values()].sort((a, b) => b.weights - a.weights)) {
    const formats = [...group.formats].sort((a, b) => b[1] - a[1]).map(([format]) => formatLabel(format));
    const cells = [count(group.tensors), count(group.weights), bytes(group.bytes)];
    body.append(element("tr", {},
      element("th", { scope: "row", class: "name" },
        element("button", { class: "link", type: "button", onclick: () => filterBy(group.reason) }, group.reason || "(none given)")),
      element("td", {}, ...formats.flatMap((label, i) => (i > 0 ? [" ", label] : [label]))),
      ...cells.map((text) => element("td", { class: "number" }, text))));
  }
  const heads = head.map(([text, css]) => element("th", { scope: "col", class: css ?? "" }, text));
  at("reason-table").append(element("thead", {}, element("tr", {}, ...heads)), body);
}

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
  any((t) => known(t.error)) && { title: "Output error", value: (t) => t.error, number: true, text: (x) => (known(x) ? x.toPrecision(3) : "–") },
  any((t) => known(t.outputCosine)) && { title: "Output cosine", value: (t) => t.outputCosine, number: true, text: (x) => fixed(x, 5) },
  { title: "Bytes", value: (t) => t.bytes, number: true, text: count },
  { title: "Weights", value: (t) => t.weights, number: true, text: count },
  { title: "Shape", value: (t) => t.shape },
  { title: "Reason", value: (t) => t.reason, css: "why" },
  { title: "Dtype", value: (t) => t.dtype },
  { title: "Group", value: (t) => (t.group === "row" ? Infinity : t.group), number: true, text: (x) => (x === Infinity ? "row" : x ?? "–") },
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
  rows[t.index] ??= element("tr", { "data-index": t.index }, ...columns.map((column, i) => {
    const value = column.value(t);
    const content = column.cell?.(t) ?? (column.text ? column.text(value) : value === "" || value == null ? "–" : value);
    const css = [column.css, column.number && "number"].filter(Boolean).join(" ");
    return element(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: css }, content);
  }));
  return rows[t.index];
}

function shown() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (t) => `${t.name}\n${t.format === "raw" ? "kept raw" : t.format}\n${t.dtype}\n${t.method}\n${t.scheme}\n${t.reason}`.toLowerCase();
  const found = words.length === 0 ? [...tensors] : tensors.filter((t) => words.every((word) => text(t).includes(word)));
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
    return element("th", { scope: "col", class: css }, element("button", { type: "button", onclick: sort }, column.title));
  });
  const mark = () => heads.forEach((head, i) => {
    if (columns[i] === state.column) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  mark();
  at("tensor-table").append(element("thead", {}, element("tr", {}, ...heads)), body);
  let soon = 0;
  at("filter").addEventListener("input", () => {
    clearTimeout(soon);
    soon = setTimeout(fill, 60);
  });
  scroller.addEventListener("scroll", () => {
    if (scroller.scrollTop + 2 * scroller.clientHeight > scroller.scrollHeight) more(ROWS);
  }, { passive: true });
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

document.querySelector("main").hidden = false;
totals();
legend();
at("by-tensor").hidden = tensors.length === 0;
at("by-depth").hidden = stacks.length === 0;
const charts = () => {
  if (tensors.length > 0) tensorCharts();
  if (stacks.length > 0) depthCharts();
};
ladder();
reasons();
table();
charts();
at("with-kept").addEventListener("change", tensorCharts);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  hideTip();
  requestAnimationFrame(charts);
});
