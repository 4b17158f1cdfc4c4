"use strict";
// Figures as text, elements, and a chart of bars: what the page is made of.
// Names of tensors come from files that anyone may have made: they reach the page only as text.

// Figures

const known = (x) => typeof x === "number" && Number.isFinite(x);
const fixed = (x, digits) => (known(x) ? x.toFixed(digits) : "–");
const count = (n) => (known(n) ? n.toLocaleString("en-US") : "–");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const sum = (list, of) => list.reduce((total, x) => total + of(x), 0);

function bytes(n) {
  if (!known(n)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; n >= 1024 && unit < units.length - 1; unit++) n /= 1024;
  return `${unit ? n.toFixed(2) : n} ${units[unit]}`;
}

// Characters that show nothing, or that turn the text around them, as their codes.
const printable = (text) =>
  String(text ?? "").replace(
    /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => `\\u{${c.charCodeAt(0).toString(16)}}`,
  );

// Elements

const at = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
function drawn(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
// A name that may go on in the next line after a dot.
const breakable = (name) => {
  const parts = document.createDocumentFragment();
  for (const part of name.split(/(?<=\.)/)) parts.append(part, document.createElement("wbr"));
  return parts;
};
const formatLabel = (format) =>
  element(
    "span",
    { class: "format" },
    element("i", { class: `key ${kind(format)}` }),
    format,
  );

// Charts

const tip = at("tip");
function showTip(lines, x, y) {
  tip.replaceChildren(
    element("b", {}, lines[0]),
    ...lines
      .slice(1)
      .filter(Boolean)
      .map((line) => element("div", {}, line)),
  );
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8));
  const top = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
  tip.style.transform = `translate(${left + scrollX}px, ${Math.max(8, top) + scrollY}px)`;
}
const hideTip = () => {
  tip.hidden = true;
};

// Bars of values between `low` and `high`. Bars have the same place in charts of the same items, so
// that one can be compared with the other.
function chart(box, { items, value, low, high, ticks, css, lines, edges, labels, mark, line, pick, label }) {
  const width = Math.max(box.clientWidth, 200),
    height = 150,
    left = 46,
    below = labels ? 34 : 6,
    above = 8;
  const svg = drawn("svg", {
    viewBox: `0 0 ${width} ${height + above + below}`,
    height: height + above + below,
    role: "img",
    tabindex: "0",
    "aria-label": label,
  });
  const y = (v) => above + height * (1 - (Math.min(Math.max(v, low), high) - low) / (high - low));
  const step = (width - left) / Math.max(items.length, 1);
  const gap = step > 4 ? Math.min(step * 0.22, 8) : 0;
  // Bars narrower than a pixel would fade into what is behind them.
  const dense = step < 2 ? " dense" : "";
  for (const tick of ticks) {
    svg.append(
      drawn("line", { class: tick === low ? "base" : "grid", x1: left, x2: width, y1: y(tick), y2: y(tick) }),
    );
    svg.append(
      drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(6)))),
    );
  }
  const cursor = drawn("rect", {
    class: "cursor",
    y: above,
    height,
    width: Math.max(step, 2),
    visibility: "hidden",
  });
  svg.append(cursor);
  items.forEach((item, i) => {
    const v = value(item);
    if (!known(v)) return;
    // At least a line, so that the lowest value is seen, too.
    const top = Math.min(y(v), above + height - 1.5);
    svg.append(
      drawn("rect", {
        class: `bar ${css(item)}${dense}`,
        "data-index": i,
        x: (left + i * step + gap / 2).toFixed(2),
        y: top.toFixed(2),
        width: Math.max(step - gap, 1).toFixed(2),
        height: (above + height - top).toFixed(2),
        rx: gap > 1 ? 1.5 : 0,
      }),
    );
    const low = mark?.(item);
    if (known(low) && step > 3) {
      svg.append(
        drawn("line", {
          class: "low",
          x1: left + i * step + gap / 2,
          x2: left + (i + 1) * step - gap / 2,
          y1: y(low),
          y2: y(low),
        }),
      );
    }
  });
  if (line !== null && line >= low && line <= high) {
    svg.append(drawn("line", { class: "gate", x1: left, x2: width, y1: y(line), y2: y(line) }));
  }
  for (const i of edges ?? []) {
    svg.append(
      drawn("line", {
        class: "edge",
        x1: left + i * step,
        x2: left + i * step,
        y1: above,
        y2: above + height + 6,
      }),
    );
  }
  const numbers = (labels ?? []).filter((label) => label.row === 0);
  const room = (width - left) / Math.max(numbers.length, 1);
  const need = 7 * numbers.reduce((most, label) => Math.max(most, label.text.length), 1) + 8;
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * room >= need) ?? 1000;
  const ends = [-1e9, -1e9];
  for (const { from, to, text, row } of labels ?? []) {
    const x = left + ((from + to) / 2) * step,
      half = text.length * 3.2 + 4;
    if (x - half < ends[row] || (row === 0 ? Number(text) % every > 0 : (to - from) * step < 14)) continue;
    ends[row] = x + half;
    const inside = Math.min(Math.max(x, left + half - 4), width - half + 4);
    svg.append(
      drawn("text", { x: inside, y: above + height + 14 + 15 * row, "text-anchor": "middle" }, text),
    );
  }

  let chosen = -1;
  const choose = (i, x, y) => {
    chosen = Math.min(Math.max(i, 0), items.length - 1);
    cursor.setAttribute("x", left + chosen * step);
    cursor.setAttribute("visibility", "visible");
    showTip(lines(items[chosen]), x, y);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  const under = (event) => {
    const frame = svg.getBoundingClientRect();
    return Math.floor((((event.clientX - frame.left) / frame.width) * width - left) / step);
  };
  if (items.length > 0) {
    svg.addEventListener("pointermove", (event) => choose(under(event), event.clientX, event.clientY));
    svg.addEventListener("pointerdown", (event) => choose(under(event), event.clientX, event.clientY));
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener(
      "click",
      (event) => event.detail > 0 && pick(items[Math.min(Math.max(under(event), 0), items.length - 1)]),
    );
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: items.length - 1 };
      if (event.key in moves) {
        event.preventDefault();
        const frame = svg.getBoundingClientRect();
        const i = Math.min(Math.max(moves[event.key], 0), items.length - 1);
        choose(i, frame.left + ((left + i * step) / width) * frame.width, frame.top + frame.height / 2);
      } else if (event.key === "Enter" && chosen >= 0) pick(items[chosen]);
      else if (event.key === "Escape") leave();
    });
  }
  box.replaceChildren(svg);
}
