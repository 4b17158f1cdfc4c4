//! A report as a page for people: one file that loads nothing.

use super::Report;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = concat!(
    include_str!("page/elements.js"),
    include_str!("page/report.js"),
    include_str!("page/charts.js"),
    include_str!("page/table.js"),
    include_str!("page/page.js"),
);

/// Where the page takes them in. What is put in first is ours and holds no other mark; the report,
/// which may hold any text, comes last.
const STYLE_MARK: &str = "/*style*/";
const SCRIPT_MARK: &str = "/*script*/";
const REPORT_MARK: &str = "/*report*/";

impl Report {
    /// The report as a page of HTML: totals, charts, and a table of tensors. It is one file that
    /// loads nothing, so it can be sent about and opened anywhere.
    pub fn to_html(&self) -> String {
        page(&serde_json::json!(self).to_string())
    }
}

/// The page of a report's JSON.
fn page(json: &str) -> String {
    let page = PAGE.replacen(STYLE_MARK, STYLE, 1);
    let page = page.replacen(SCRIPT_MARK, SCRIPT, 1);
    page.replacen(REPORT_MARK, &within_script(json), 1)
}

/// JSON that can stand in a `<script>`, which `</script>` or `<!--` in a tensor's name would end
/// or change. These characters stand only inside strings, where JSON has escapes for them. U+2028
/// and U+2029 end lines in older JavaScript.
fn within_script(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What stands between the tags of the report's data.
    fn data(page: &str) -> &str {
        let (_, rest) = page.split_once("type=\"application/json\">").unwrap();
        rest.split_once("</script>").unwrap().0
    }

    #[test]
    fn hostile_names_stay_data() {
        let names = [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "<img src=x onerror=alert(1)>",
            "]]>&lt;/script&gt;",
            "line\u{2028}paragraph\u{2029}nul\u{0}\\u003c\\",
            "/*style*//*script*//*report*/",
            "$& $1 \u{202e}gniht \"quoted\" 'so'",
        ];
        let tensors: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        let report = json!({"tensors": tensors, "total": {"cosine": 0.5}});
        let page = page(&report.to_string());
        let data = data(&page);
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), report);
        for never in ["<", ">", "&", "\u{2028}", "\u{2029}"] {
            assert!(!data.contains(never), "{never:?} in {data}");
        }
        // The page is that of an empty report but for the data: nothing was put in elsewhere.
        let (before, after) = page.split_once(data).unwrap();
        assert_eq!(format!("{before}{{}}{after}"), super::page("{}"));
    }

    #[test]
    fn loads_nothing() {
        let page = page("{}");
        for mark in [STYLE_MARK, SCRIPT_MARK, REPORT_MARK] {
            assert!(!page.contains(mark), "{mark}");
        }
        // The namespace of SVG is a name that nobody opens.
        let page = page
            .replace("http://www.w3.org/2000/svg", "")
            .to_lowercase();
        for load in [
            "http:",
            "https:",
            "//www",
            " src=",
            "url(",
            "@import",
            "fetch(",
            "xmlhttprequest",
            "websocket",
            "eventsource",
            "sendbeacon",
            "import(",
            "innerhtml",
            "document.write",
            "eval(",
        ] {
            assert!(!page.contains(load), "{load}");
        }
        let policy = "content-security-policy\" content=\"default-src 'none';";
        assert!(page.contains(policy));
        assert_eq!(
            page.matches("href=").count(),
            page.matches("href=\"data:,\"").count()
        );
    }
}
