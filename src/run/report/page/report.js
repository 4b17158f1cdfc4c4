// A report: its tensors by depth, totals, the ladder, reasons. Fields that it lacks are left out.

const report = JSON.parse(document.getElementById("report").textContent);

// Where a block's number stands in a name: after a component that is called like a stack of them.
const BLOCK =
  /^((?:.*?\.)?(?:[a-z_0-9]*(?:blocks?|layers?|stages?|levels?|blk)|downs?|ups?|h))\.(\d+)(?:\.|$)/i;

const tensors = (report.tensors ?? []).map((tensor, index) => {
  const name = String(tensor.name ?? "");
  const block = BLOCK.exec(name);
  const weights = (tensor.shape ?? []).reduce((product, n) => product * n, 1);
  const kept = tensor.cosine == null && !/^int\d/.test(tensor.format ?? "");
  return {
    index,
    weights,
    kept,
    name: printable(name),
    shape: (tensor.shape ?? []).join(" × "),
    dtype: tensor.dtype ?? "",
    format: tensor.format ?? "",
    group: kept ? null : tensor.group_size === 0 ? "row" : tensor.group_size,
    scheme: tensor.scheme ?? "",
    method: tensor.method ?? "",
    bits: tensor.bits_per_weight,
    bytes: tensor.bytes,
    cosine: tensor.cosine,
    sqnr: tensor.sqnr_db,
    error: tensor.output?.error,
    outputCosine: tensor.output?.cosine,
    transform: [
      tensor.smoothing != null && `smoothed ${tensor.smoothing}`,
      tensor.rotation != null && `rotated ${tensor.rotation}`,
    ]
      .filter(Boolean)
      .join(", "),
    ladder: Array.isArray(tensor.ladder) ? tensor.ladder : [],
    gate: tensor.min_cosine,
    below: tensor.below_min_cosine === true,
    reason: printable(tensor.reason) + (tensor.kept_non_finite ? " (kept: holds NaN or infinity)" : ""),
    stack: block ? printable(block[1]) : null,
    depth: block ? Number(block[2]) : null,
  };
});
const gates = [...new Set(tensors.map((t) => t.gate).filter(known))];
// The one that all tensors had to reach, if it is one.
const gate = gates.length === 1 ? gates[0] : null;
const kind = (format) => (/^int[248]$/.test(format) ? format : "kept");

// By depth: stacks as they first appear, blocks by number, what is in none at the end.
const stacks = [...new Set(tensors.map((t) => t.stack).filter((stack) => stack !== null))];
const place = new Map(stacks.map((stack, i) => [stack, i]));
const rank = (t) => (t.stack === null ? stacks.length : place.get(t.stack));
const inOrder = [...tensors].sort(
  (a, b) => rank(a) - rank(b) || (a.depth ?? 0) - (b.depth ?? 0) || a.index - b.index,
);

// Totals

function totals() {
  const total = report.total ?? {};
  // Floats at 16 bits, the rest as it is.
  const fp16 = sum(tensors, (t) => (/^(f|bf)\d/.test(t.dtype) ? 2 * t.weights : (t.bytes ?? 0)));
  const measured = tensors.filter((t) => known(t.error));
  const times = (whole) =>
    known(whole) && report.output_bytes > 0 ? `${(whole / report.output_bytes).toFixed(2)}×` : "–";
  at("source").textContent = printable(report.source?.name ?? "a model");
  at("subtitle").textContent = `to ${printable(report.output ?? "memory")}`;
  document.title = `${at("source").textContent} – ArrowQuant report`;
  const cards = [
    ["Compression", times(fp16), `against FP16; ${times(report.source_bytes)} against the source`],
    [
      "Bits per weight",
      fixed(total.bits_per_weight, 3),
      `of ${count(total.weights)} weights, scales counted`,
    ],
    ["Cosine", fixed(total.cosine, 5), "over all quantized weights"],
    [
      "SQNR",
      known(total.sqnr_db) ? `${fixed(total.sqnr_db, 2)} dB` : total.cosine == null ? "–" : "no error",
      "signal to quantization noise",
    ],
    ["Tensors", count(total.quantized), `quantized; ${count(total.kept)} kept`],
    [
      "Time",
      `${fixed(report.seconds, report.seconds < 10 ? 2 : 1)} s`,
      [known(report.threads) && plural(report.threads, "thread"), report.isa].filter(Boolean).join(", "),
    ],
  ];
  if (measured.length > 0) {
    const mean = (of) => sum(measured, of) / measured.length;
    cards.splice(4, 0, [
      "Mean output error",
      mean((t) => t.error).toPrecision(3),
      `on the calibration, of ${plural(measured.length, "layer")}; cosine ${fixed(
        mean((t) => t.outputCosine),
        4,
      )}`,
    ]);
  }
  at("cards").append(
    ...cards.map(([label, figure, more]) =>
      element(
        "div",
        {},
        element("dt", {}, label),
        element("dd", { class: "figure" }, figure),
        element("dd", { class: "more" }, more),
      ),
    ),
  );

  const sizes = [
    ["All at FP16", fp16],
    ["Source", report.source_bytes],
    ["This file", report.output_bytes, "ours"],
  ];
  const largest = Math.max(...sizes.map((size) => size[1] || 0), 1);
  at("sizes").append(
    ...sizes.map(([label, size, ours]) => {
      const fill = element("div", { class: "fill" });
      fill.style.width = `${(100 * (size || 0)) / largest}%`;
      const share = fp16 > 0 && known(size) ? ` · ${((100 * size) / fp16).toFixed(1)}%` : "";
      return element(
        "div",
        { class: `size ${ours ?? ""}` },
        element("span", {}, label),
        element("div", { class: "track" }, fill),
        element("span", { class: "amount" }, bytes(size) + share),
      );
    }),
  );

  const notes = [];
  if (report.memory_limit != null)
    notes.push(`Streamed under a ceiling of ${bytes(report.memory_limit)} of memory.`);
  if (report.streaming_because) notes.push(`It streamed because ${printable(report.streaming_because)}.`);
  if (report.parts)
    notes.push(
      `Written as ${plural(report.parts.count, "part")}, ${count(report.parts.resumed)} of them there already.`,
    );
  const wide = tensors.filter((t) => (report.tensors[t.index].f32_scale_tiles ?? []).length > 0).length;
  if (wide > 0) notes.push(`${plural(wide, "tensor")} with scales that did not fit f16.`);
  const broken = tensors.filter((t) => report.tensors[t.index].kept_non_finite).length;
  if (broken > 0) notes.push(`${plural(broken, "tensor")} kept for NaN or infinity.`);
  at("notes").append(...notes.map((note) => element("li", {}, note)));
  at("notes").hidden = notes.length === 0;
}

// The ladder

const rung = (format, spatial) => format + (spatial === true ? " spatial" : "");
function ladder() {
  const climbed = tensors.filter((t) => t.ladder.length > 0);
  const below = tensors.filter((t) => t.below);
  if (gates.length === 0 && climbed.length === 0) return;
  at("ladder").hidden = false;
  const kept = climbed.filter((t) => t.kept).length;
  at("ladder-summary").textContent =
    (gate === null ? "" : `Each tensor was to have a cosine of ${gate} at least. `) +
    (climbed.length === 0
      ? below.length === 0
        ? "All passed at the first try."
        : ""
      : `${plural(climbed.length, "tensor")} of ${count(tensors.length)} did not pass at the first try; ${count(kept)} of them ended kept.`) +
    (below.length === 0 ? "" : ` ${plural(below.length, "tensor")} stayed below it, for lack of room: ${below.map((t) => t.name).join(", ")}.`);
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
  at("ladder-rungs").append(
    ...[...rungs].sort((a, b) => b[1] - a[1]).map(([step, n]) => element("li", {}, `${step}: ${count(n)}`)),
  );
  const body = element("tbody");
  for (const t of climbed) {
    const steps = t.ladder.flatMap((attempt) => [
      element(
        "span",
        { class: "step failed", title: attempt.measure ? `cosine of the ${attempt.measure}` : null },
        `${rung(attempt.format, attempt.spatial)} ${fixed(attempt.cosine, 4)}${known(attempt.min_cosine) ? ` < ${attempt.min_cosine}` : ""}`,
      ),
      element("span", { class: "arrow" }, "→"),
    ]);
    const measures = new Set(t.ladder.map((attempt) => attempt.measure));
    const reached = measures.has("output") && known(t.outputCosine) ? t.outputCosine : t.cosine;
    const end = element("span", { class: "step" }, formatLabel(t.format));
    if (known(reached)) end.append(fixed(reached, 4));
    body.append(
      element(
        "tr",
        {},
        element(
          "th",
          { scope: "row", class: "name" },
          element("button", { class: "link", type: "button", onclick: () => showRow(t) }, breakable(t.name)),
        ),
        element("td", {}, element("div", { class: "steps" }, ...steps, end)),
        element("td", {}, [...measures].filter(Boolean).map(printable).join(", ")),
      ),
    );
  }
  const head = ["Tensor", "Steps", "Cosine of"].map((text) => element("th", { scope: "col" }, text));
  at("ladder-table").append(element("thead", {}, element("tr", {}, ...head)), body);
}

// Reasons

function reasons() {
  const groups = new Map();
  for (const t of tensors) {
    const group = groups.get(t.reason) ?? {
      reason: t.reason,
      tensors: 0,
      weights: 0,
      bytes: 0,
      formats: new Map(),
    };
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
    body.append(
      element(
        "tr",
        {},
        element(
          "th",
          { scope: "row", class: "name" },
          element(
            "button",
            { class: "link", type: "button", onclick: () => filterBy(group.reason) },
            group.reason || "(none given)",
          ),
        ),
        element("td", {}, ...formats.flatMap((label, i) => (i > 0 ? [" ", label] : [label]))),
        ...cells.map((text) => element("td", { class: "number" }, text)),
      ),
    );
  }
  const heads = head.map(([text, css]) => element("th", { scope: "col", class: css ?? "" }, text));
  at("reason-table").append(element("thead", {}, element("tr", {}, ...heads)), body);
}
