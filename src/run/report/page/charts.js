// The charts of tensors and of blocks.

// An axis that ends at 1 and begins where differences can be seen.
function cosineAxis(values) {
  const least = values.filter(known).reduce((a, b) => Math.min(a, b), gate ?? 1);
  const starts = [0.9999, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.5, 0, -1];
  const low = starts.find((start) => least >= start + 0.05 * (1 - start)) ?? -1;
  return { low, high: 1, ticks: [0, 1, 2, 3, 4].map((i) => low + ((1 - low) * i) / 4) };
}
// Tensors that are kept may have 32 or 64 bits, beside which 2 and 4 would look the same.
function bitsAxis(values) {
  const most = values.filter(known).reduce((a, b) => Math.max(a, b), 1);
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
    t.name,
    `${t.kept ? "kept as " + t.dtype : t.format} · ${fixed(t.bits, 3)} bits/weight · ${bytes(t.bytes)}`,
    t.kept ? "" : `cosine ${fixed(t.cosine, 5)} · SQNR ${fixed(t.sqnr, 2)} dB`,
    known(t.error) ? `output error ${t.error.toPrecision(3)}, cosine ${fixed(t.outputCosine, 5)}` : "",
    t.ladder.length > 0 ? `after ${plural(t.ladder.length, "step")} of the ladder` : "",
    t.reason,
  ];
}

// Where runs of the same stack, and of the same block in it, begin and end.
function runs(items) {
  const labels = [],
    edges = [];
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
  const common = {
    items,
    css: (t) => kind(t.format),
    lines: tensorLines,
    pick: showRow,
    line: null,
    ...runs(items),
  };
  if (common.edges.length > items.length / 3 || common.edges.length > 150) common.edges = [];
  const cosine = cosineAxis(items.map((t) => t.cosine)),
    bits = bitsAxis(items.map((t) => t.bits));
  titled("tensor-cosine-title", cosine, "Cosine");
  titled("tensor-bits-title", bits, "Bits per weight");
  chart(at("tensor-cosine"), {
    ...common,
    ...cosine,
    value: (t) => t.cosine,
    line: gate,
    label: `Cosine of ${plural(items.length, "tensor")}`,
  });
  chart(at("tensor-bits"), {
    ...common,
    ...bits,
    value: (t) => t.bits,
    label: `Bits per weight of ${plural(items.length, "tensor")}`,
  });
}

const depths = [];
for (const t of inOrder) {
  const last = depths.at(-1);
  if (last && rank(last) === rank(t) && last.depth === t.depth) last.tensors.push(t);
  else depths.push({ stack: t.stack, depth: t.depth, tensors: [t] });
}
for (const group of depths) {
  const with_cosine = group.tensors.filter((t) => known(t.cosine));
  const weights = sum(group.tensors, (t) => t.weights),
    measured = sum(with_cosine, (t) => t.weights);
  group.bytes = sum(group.tensors, (t) => t.bytes ?? 0);
  group.bits = weights > 0 ? (8 * group.bytes) / weights : null;
  group.cosine = measured > 0 ? sum(with_cosine, (t) => t.cosine * t.weights) / measured : null;
  group.worst = with_cosine.reduce(
    (worst, t) => (worst === null || t.cosine < worst.cosine ? t : worst),
    null,
  );
  group.label = group.stack === null ? "no block" : `${group.stack}.${group.depth}`;
  const formats = new Map();
  for (const t of group.tensors) formats.set(kind(t.format), (formats.get(kind(t.format)) ?? 0) + t.weights);
  group.format = [...formats].reduce((most, entry) => (entry[1] > most[1] ? entry : most))[0];
}

function depthCharts() {
  const lines = (group) => [
    group.label,
    `${plural(group.tensors.length, "tensor")} · ${fixed(group.bits, 3)} bits/weight · ${bytes(group.bytes)}`,
    group.worst && `mean cosine ${fixed(group.cosine, 5)}`,
    group.worst && `lowest ${fixed(group.worst.cosine, 5)}: ${group.worst.name}`,
  ];
  const common = {
    items: depths,
    css: (group) => group.format,
    lines,
    line: null,
    ...runs(depths),
    pick: (group) => group.stack !== null && filterBy(`${group.label}.`),
  };
  common.edges = common.edges.filter((i) => rank(depths[i]) !== rank(depths[i - 1]));
  const cosine = cosineAxis(depths.map((group) => group.worst?.cosine)),
    bits = bitsAxis(depths.map((group) => group.bits));
  titled("depth-cosine-title", cosine, "Cosine");
  titled("depth-bits-title", bits, "Bits per weight");
  chart(at("depth-cosine"), {
    ...common,
    ...cosine,
    value: (g) => g.cosine,
    mark: (g) => g.worst?.cosine,
    line: gate,
    label: `Cosine of ${plural(depths.length, "block")}`,
  });
  chart(at("depth-bits"), {
    ...common,
    ...bits,
    value: (g) => g.bits,
    label: `Bits per weight of ${plural(depths.length, "block")}`,
  });
}

function legend() {
  const found = ["int2", "int4", "int8", "kept"].filter((name) =>
    tensors.some((t) => kind(t.format) === name),
  );
  const entries = found.map((name) =>
    element("li", {}, element("i", { class: `key ${name}` }), name),
  );
  if (gate !== null) entries.push(element("li", {}, element("i", { class: "key gate" }), `gate ${gate}`));
  at("legend").append(...entries);
  at("order-hint").textContent =
    stacks.length > 0
      ? "In order of depth: a bar a tensor, blocks by the numbers in their names. Click a bar to see its row; with the keyboard, arrows move and Enter goes there."
      : "In the order of the model: a bar a tensor. Click a bar to see its row; with the keyboard, arrows move and Enter goes there.";
}
