"""Opens report pages in a headless Chromium and uses them like a person.

    python tests/browser/check_report.py target/release/arrowquant SCREENSHOTS

Needs Chromium, its driver, and selenium. Writes screenshots of what it saw into the folder.
"""

import array
import json
import math
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser, waited
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "&lt;b&gt;&amp;",
    "line\u2028end\u2029",
    "\u202egnp.exe",
    "'\"`${window.hacked=1}",
    "tab\tnul\0bell\a",
    "/*report*/",
    "ünï→\U0001f600",
    "constructor",
    "__proto__",
    "w" * 300,
]
# Rows that the table has before one scrolls.
ROWS = 200
# Header of a column, and the figure of a tensor in the report's JSON.
NUMBERS = {
    "Bits/weight": lambda t: t["bits_per_weight"], "Cosine": lambda t: t["cosine"],
    "SQNR dB": lambda t: t["sqnr_db"], "Bytes": lambda t: t["bytes"],
    "Weights": lambda t: math.prod(t["shape"]), "Output error": lambda t: (t["output"] or {}).get("error"),
    "Output cosine": lambda t: (t["output"] or {}).get("cosine"),
    "Ladder steps": lambda t: len(t.get("ladder") or []),
}  # fmt: skip


def many_tensors(path, count=2000, rows=16, columns=48):
    """Makes a model of many small tensors, every third of which has a harmful name."""
    draw = random.Random(7)
    header, parts, offset = {}, [], 0
    for i in range(count):
        name = f"layers.{i // 20}.part{i % 20}.weight"
        if i % 3 == 0:
            name = f"layers.{i // 20}.{HOSTILE[i // 3 % len(HOSTILE)]}.{i}"
        # From noise to a few large values: not all are alike after quantizing.
        power = 1 + i % 7
        values = array.array("f", (draw.gauss(0, 1) ** power for _ in range(rows * columns)))
        parts.append(values.tobytes())
        header[name] = {
            "dtype": "F32",
            "shape": [rows, columns],
            "data_offsets": [offset, offset + len(parts[-1])],
        }
        offset += len(parts[-1])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def quantized(program, model, folder, name, *flags):
    """Returns the report of a run, and its page."""
    page, data = folder / f"{name}.html", folder / f"{name}.json"
    run = [program, "quantize", model, folder / f"{name}.parquet", *flags, "--quiet"]
    subprocess.run([*run, "--report", page, "--report", data], check=True)
    return json.loads(data.read_text(encoding="utf-8")), page


def with_more(report, page, target):
    """Returns a page with the effects of a calibration and min_cosine: a ladder and output errors."""
    draw = random.Random(3)
    report = json.loads(json.dumps(report))
    order = ["int2", "int4", "int8", "kept"]
    for tensor in report["tensors"]:
        tensor["ladder"], tensor["min_cosine"] = [], None
        if tensor["format"] == "kept" and len(tensor["shape"]) < 2:
            continue
        tensor["min_cosine"] = 0.95
        if tensor["format"] != "kept":
            tensor["output"] = {"error": draw.random() / 50, "cosine": 1 - draw.random() / 50, "by_time": []}
        for format in order[: order.index(tensor["format"])] if draw.random() < 0.7 else []:
            for spatial in [True, False][draw.randrange(2) :]:
                found = round(0.7 + 0.2 * draw.random(), 4)
                attempt = {
                    "format": format,
                    "spatial": spatial,
                    "cosine": found,
                    "measure": "output",
                    "min_cosine": 0.95,
                }
                tensor["ladder"].append(attempt)
    text = json.dumps(report)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    put = lambda found: found[1] + text + "</script>"
    html = page.read_text(encoding="utf-8")
    html, times = re.subn(r'(type="application/json">)(.*?)</script>', put, html, count=1, flags=re.DOTALL)
    assert times == 1
    target.write_text(html, encoding="utf-8")
    return report, target


def shown(browser, scrolled=False):
    """The tensors of the table's rows, by their place in the report. Rows are made as one scrolls to
    them."""
    last = -1
    while scrolled and last != (
        last := browser.run("return document.querySelectorAll('#tensor-table tr').length")
    ):
        browser.run(
            "const box = document.querySelector('#tensors .scroll'); box.scrollTop = box.scrollHeight"
        )
        time.sleep(0.2)
    rows = "return [...document.querySelectorAll('#tensor-table tbody tr')].map(r => Number(r.dataset.index))"
    return browser.run(rows)


def head(browser, title):
    for cell in browser.all("#tensor-table thead th"):
        if cell.text.strip() == title:
            return cell
    raise AssertionError(f"no column {title}")


def ordered(values, down):
    """Returns places in order of value; missing values at the end, equal ones in their order."""
    known = [i for i, value in enumerate(values) if value is not None]
    missing = [i for i, value in enumerate(values) if value is None]
    return sorted(known, key=lambda i: (-values[i] if down else values[i], i)) + missing


def natural(name):
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


def check_sorting(browser, report):
    """Sorts by each column of numbers, both ways; by names; and with the keyboard."""
    tensors = report["tensors"]
    titles = [cell.text.strip() for cell in browser.all("#tensor-table thead th")]
    plan = list(range(len(tensors)))
    assert shown(browser) == plan[:ROWS], "in the order of the plan at first"
    slowest, columns = 0, [title for title in titles if title in NUMBERS]
    assert len(columns) >= 5, titles
    for title in columns:
        values = [NUMBERS[title](tensor) for tensor in tensors]
        assert len(set(values)) > 1 or title == "Weights", title
        for down in (False, True):
            begun = time.perf_counter()
            cell = head(browser, title)
            browser.run("arguments[0].querySelector('button').click()", cell)
            found = shown(browser)
            laid_out = browser.run("return document.body.offsetHeight")
            slowest = max(slowest, time.perf_counter() - begun)
            assert laid_out > 0 and found == ordered(values, down)[:ROWS], (title, down)
            if title == "Cosine":
                assert shown(browser, scrolled=True) == ordered(values, down)
            assert cell.get_attribute("aria-sort") == ("descending" if down else "ascending")
            assert len(browser.all("[aria-sort]")) == 1
    assert slowest < 3, slowest
    names = [tensor["name"] for tensor in tensors]
    button = head(browser, "Tensor").find_element(By.TAG_NAME, "button")
    if all(name.isascii() and name.isprintable() and "<" not in name for name in names):
        expected = sorted(range(len(names)), key=lambda i: natural(names[i]))
        for order in (expected, expected[::-1]):
            button.send_keys(Keys.ENTER)
            assert shown(browser) == order
        button.send_keys(Keys.SPACE)
        assert shown(browser) == expected
    browser.run("arguments[0].querySelector('button').click()", head(browser, "#"))
    assert shown(browser, scrolled=True) == plan
    return len(columns), slowest


def no_filter(browser, report):
    browser.one("#filter").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    waited(lambda: len(shown(browser)) == min(len(report["tensors"]), ROWS), "all again")


def check_filter(browser, report, words):
    field = browser.one("#filter")
    kept = lambda tensor: "kept" if tensor["format"] == "kept" else tensor["format"]
    texts = [f"{t['name']}\n{kept(t)}\n{t['reason']}".lower() for t in report["tensors"]]
    expected = [i for i, text in enumerate(texts) if all(word in text for word in words.lower().split())]
    assert 0 < len(expected) < len(texts), words
    field.send_keys(words)
    waited(lambda: shown(browser) == expected[:ROWS], f"filter {words}")
    assert shown(browser, scrolled=True) == expected
    assert browser.one("#count").text.startswith(f"{len(expected)} of {len(texts):,} ")
    field.send_keys(" no-such-tensor")
    waited(lambda: shown(browser) == [], "an empty table")
    no_filter(browser, report)


def bars(browser, chart):
    heights = "return [...document.querySelectorAll('#' + arguments[0] + ' .bar')].map(b => Number(b.getAttribute('height')))"
    return browser.run(heights, chart)


def check_bars(browser, report):
    tensors = report["tensors"]
    quantized = [t for t in tensors if t["format"] != "kept"]
    assert len(bars(browser, "tensor-bits")) == len(bars(browser, "tensor-cosine")) == len(quantized)
    browser.one("#with-kept").click()
    heights = bars(browser, "tensor-bits")
    assert len(heights) == len(tensors) and len(bars(browser, "tensor-cosine")) == len(quantized)
    # Heights are as bits are; bars are in another order, that of depth.
    bits = sorted(min(t["bits_per_weight"], 16) for t in tensors)
    scale = max(heights) / bits[-1]
    for height, value in zip(sorted(heights), bits):
        assert abs(height - scale * value) < 0.1, (height, value)
    browser.one("#with-kept").click()
    assert len(bars(browser, "tensor-bits")) == len(quantized)
    blocks = {found[0] for t in tensors if (found := re.match(r"(blocks|layers)\.\d+\.", t["name"]))}
    alone = any(not re.match(r"(blocks|layers)\.\d+\.", t["name"]) for t in tensors)
    assert len(bars(browser, "depth-bits")) == len(blocks) + alone
    # The first bar goes to its row.
    bar = browser.one("#tensor-bits .bar")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", bar)
    browser.click(bar)
    chosen = browser.all("#tensor-table tr.chosen")
    assert len(chosen) == 1 and chosen[0].is_displayed()
    assert tensors[int(chosen[0].get_attribute("data-index"))]["format"] != "kept"
    # Keys move through the bars, and say what is under them.
    svg = browser.one("#depth-cosine svg")
    svg.send_keys(Keys.END)
    assert "bits/weight" in browser.one("#tip").text
    svg.send_keys(Keys.ESCAPE)
    assert not browser.one("#tip").is_displayed()


def check_totals(browser, report):
    text = browser.one("#cards").text
    total = report["total"]
    fp16 = sum(2 * math.prod(t["shape"]) if t["dtype"][0] in "fb" else t["bytes"] for t in report["tensors"])
    for figure in [
        f"{total['bits_per_weight']:.3f}", f"{total['cosine']:.5f}", f"{total['sqnr_db']:.2f} dB",
        f"{fp16 / report['output_bytes']:.2f}×", f"{report['source_bytes'] / report['output_bytes']:.2f}× against the source",
        report["isa"], f"{total['quantized']:,}", f"{total['kept']:,} kept",
    ]:  # fmt: skip
        assert figure in text, (figure, text)
    errors = [t["output"]["error"] for t in report["tensors"] if t["output"]]
    assert ("Mean output error" in text) == bool(errors)
    if errors:
        found = re.search(r"Mean output error\s+(\S+)", text)[1]
        assert math.isclose(float(found), sum(errors) / len(errors), rel_tol=0.005), found


def check_reasons(browser, report):
    reasons = {t["reason"] for t in report["tensors"]}
    assert {cell.text for cell in browser.all("#reason-table tbody th")} == reasons
    first = browser.one("#reason-table tbody .link")
    words = first.text.lower().split()
    browser.run("arguments[0].click()", first)
    assert shown(browser, scrolled=True) == [
        i for i, t in enumerate(report["tensors"])
        if all(word in f"{t['name']}\n{t['format']}\n{t['dtype']}\n{t['method']}\n{t['reason']}".lower() for word in words)
    ]  # fmt: skip
    no_filter(browser, report)


def check_ladder(browser, report):
    climbed = [t for t in report["tensors"] if t.get("ladder")]
    section = browser.one("#ladder")
    if all(t["min_cosine"] is None for t in report["tensors"]):
        assert not climbed and not section.is_displayed()
        return
    if not climbed:
        assert "All passed at the first try." in section.text
        return
    assert len(climbed) > 3
    assert f"{len(climbed)} tensors of {len(report['tensors'])} did not pass" in section.text
    lines = browser.all("#ladder-table tbody tr")
    assert len(lines) == len(climbed)
    for line, tensor in zip(lines, climbed):
        steps = [step.text for step in line.find_elements(By.CSS_SELECTOR, ".step")]
        assert len(steps) == len(tensor["ladder"]) + 1
        first = tensor["ladder"][0]
        assert steps[0].startswith(first["format"]) and f"{first['cosine']:.4f} < 0.95" in steps[0]
        assert steps[-1].startswith("kept" if tensor["format"] == "kept" else tensor["format"])


def check_hostile_names(browser, report):
    """Harmful names appear in the table as text, and have no effect."""
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.scripts.length") == 2
    assert browser.run("return document.images.length") == 0
    cells = "return [...document.querySelectorAll('#tensor-table tbody th')].map(c => c.textContent)"
    assert len(shown(browser, scrolled=True)) == len(report["tensors"])
    invisible = re.compile("[\0-\x1f\u2028\u2029\u202e]")
    expected = [invisible.sub(lambda c: f"\\u{{{ord(c[0]):x}}}", t["name"]) for t in report["tensors"]]
    assert browser.run(cells) == expected


def check_the_checks(browser, folder):
    """The checks find what they look for."""
    page = folder / "bad.html"
    page.write_text('<script>console.warn("odd")</script><img src="http://127.0.0.1:9/x.png">')
    browser.open(page)
    messages, requests = browser.said()
    assert any("odd" in message for message in messages), messages
    assert any("127.0.0.1:9" in url for url in requests), requests


def check(browser, report, page, words, screenshots):
    name = page.stem
    for scheme in ("light", "dark"):
        backgrounds = set()
        for device, width, height in [("phone", 390, 844), ("wide", 1360, 900)]:
            browser.look(scheme, width, height, device == "phone")
            seconds = browser.open(page)
            assert seconds < 5, seconds
            wider = browser.run(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, f"{name} is {wider} pixels too wide for {device}"
            backgrounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
            (screenshots / f"{name}-{device}-{scheme}.png").write_bytes(browser.screenshot())
        assert len(backgrounds) == 1
        dark = sum(map(int, re.findall(r"\d+", backgrounds.pop())[:3])) < 200
        assert dark == (scheme == "dark")
    check_totals(browser, report)
    check_bars(browser, report)
    check_reasons(browser, report)
    check_ladder(browser, report)
    columns, slowest = check_sorting(browser, report)
    check_filter(browser, report, words)
    check_hostile_names(browser, report)
    messages, requests = browser.said()
    assert not messages, messages
    assert requests and set(requests) <= {page.as_uri(), "data:,"}, requests
    print(
        f"{name}: {len(report['tensors'])} tensors, loaded in {seconds:.2f} s; {columns} columns sorted, "
        f"at most {slowest:.2f} s each; no message, no request but the page"
    )


def main():
    program, screenshots = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        many_tensors(folder / "many.safetensors")
        model = ROOT / "examples/models/dit-digits.safetensors"
        mixed = ["--bits", "2", "--rule", "*mlp*weight=bits:4", "--rule", "blocks.3.*weight=bits:8"]
        real = quantized(program, model, folder, "dit", *mixed)
        ladder = with_more(*real, folder / "ladder.html")
        many = quantized(program, folder / "many.safetensors", folder, "many", "--bits", "4", "--group-size", "16",
                         "--min-cosine", "none",
                         "--rule", "layers.*.part1*=bits:2", "--keep", "layers.?.*")  # fmt: skip
        assert len(many[0]["tensors"]) == 2000
        with Browser(folder / "profile") as browser:
            check_the_checks(browser, folder)
            check(browser, *real, "attn int2", screenshots)
            check(browser, *ladder, "fc1 int4", screenshots)
            check(browser, *many, "onerror int4", screenshots)


if __name__ == "__main__":
    main()
