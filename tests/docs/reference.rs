//! docs/c-reference.md is the header as a page. `UPDATE_DOCS=1 cargo test --release docs` writes
//! it.

use std::fmt::Write;

use crate::common::root;

/// A declaration or comment in the header, in order.
enum Item {
    /// A comment about everything that follows.
    Section(Vec<String>),
    Constant {
        name: String,
        value: String,
        about: Vec<String>,
    },
    Declaration {
        name: String,
        code: Vec<String>,
        about: Vec<String>,
    },
}

/// Returns the text of a comment, without its stars.
fn stripped(comment: &[&str]) -> Vec<String> {
    let lines = comment.iter().map(|line| {
        let line = line
            .trim()
            .trim_start_matches("/**")
            .trim_start_matches("/*");
        let line = line.trim_end_matches("*/").trim();
        line.strip_prefix('*').unwrap_or(line).trim().to_owned()
    });
    let mut lines: Vec<String> = lines.collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    let start = lines.iter().take_while(|line| line.is_empty()).count();
    lines.split_off(start)
}

/// Returns the name in a declaration: after `} ` of a struct, before `(` of a function, at the end
/// of another type.
fn name_of(code: &[&str]) -> String {
    let text = code.join(" ");
    let end = match (code[0].ends_with('{'), text.find("(*"), text.find('(')) {
        (true, _, _) => &code[code.len() - 1][1..],
        (_, Some(pointer), _) => &text[pointer + 2..text[pointer..].find(')').unwrap() + pointer],
        (_, None, Some(arguments)) => &text[..arguments],
        (_, None, None) => &text,
    };
    let end = end.trim().trim_end_matches(';');
    end.rsplit([' ', '*']).next().unwrap().to_owned()
}

/// The lines of the header for a reader of C: without what is for C++ alone, and without how AQ_API
/// is chosen.
fn lines_for_c(header: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    // How deep in conditions, and where one began that is left out.
    let (mut depth, mut left_out) = (0, None);
    for line in header.lines() {
        if line.starts_with("#if") {
            depth += 1;
            if left_out.is_none() && ["#ifdef __cplusplus", "#ifndef AQ_API"].contains(&line) {
                left_out = Some(depth);
            }
        }
        if left_out.is_none() {
            lines.push(line);
        }
        let ends = line.starts_with("#endif") || line.starts_with("#else");
        if ends && left_out == Some(depth) {
            left_out = None;
        }
        if line.starts_with("#endif") {
            depth -= 1;
        }
    }
    lines
}

fn items(header: &str) -> Vec<Item> {
    let lines = lines_for_c(header);
    let mut items = Vec::new();
    let mut about = Vec::new();
    let mut i = 0;
    while i < lines.len() {
        let line = lines[i];
        let until = |end: &dyn Fn(&str) -> bool| {
            i + lines[i..].iter().position(|line| end(line)).unwrap() + 1
        };
        let next = if line.starts_with("/*") {
            let end = until(&|line| line.ends_with("*/"));
            let text = stripped(&lines[i..end]);
            match line.starts_with("/**") {
                true => about = text,
                false => items.push(Item::Section(text)),
            }
            end
        } else if let Some(constant) = line.strip_prefix("#define ") {
            if let Some((name, value)) = constant.split_once(' ') {
                items.push(Item::Constant {
                    name: name.to_owned(),
                    value: value.to_owned(),
                    about: std::mem::take(&mut about),
                });
            }
            i + 1
        } else if line.starts_with(['#', '}']) || line.is_empty() || line.starts_with("extern") {
            i + 1
        } else {
            let end = match line.ends_with('{') {
                true => until(&|line| line.starts_with('}')),
                false => until(&|line| line.ends_with(';')),
            };
            let code = &lines[i..end];
            items.push(Item::Declaration {
                name: name_of(code),
                code: code.iter().map(|line| line.to_string()).collect(),
                about: std::mem::take(&mut about),
            });
            end
        };
        i = next;
    }
    items
}

/// Escapes text for Markdown.
fn escaped(line: &str) -> String {
    let parts = line.split('`').enumerate().map(|(i, part)| match i % 2 {
        0 => part.replace('*', "\\*").replace('<', "&lt;"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}

/// Returns the heading of a section, and its number of lines.
fn heading(text: &[String]) -> (&str, usize) {
    match text[0].strip_suffix('.') {
        Some(title) => (title, 1),
        // If the first sentence is long, its beginning is the heading.
        None => (text[0].split(':').next().unwrap(), 0),
    }
}

fn page(header: &str) -> String {
    let mut page = String::from(
        "# C reference\n\n\
         This is [include/arrowquant.h](../include/arrowquant.h) as a page, written by a test. \
         [c-api.md](c-api.md) is the guide, by task.\n",
    );
    let mut items = items(header).into_iter().peekable();
    let mut first = true;
    while let Some(item) = items.next() {
        match item {
            Item::Section(text) => {
                // The first comment is about the whole header.
                let (title, taken) = match std::mem::take(&mut first) {
                    true => ("What holds for every function", 3),
                    false => heading(&text),
                };
                let rest = &text[taken..];
                writeln!(page, "\n## {}", title.replace('`', "")).unwrap();
                page += "\n";
                let mut blank = true;
                for line in rest {
                    if !(blank && line.is_empty()) {
                        writeln!(page, "{}", escaped(line)).unwrap();
                    }
                    blank = line.is_empty();
                }
            }
            Item::Constant { name, value, about } => {
                page += "\n| constant | value | |\n|---|---|---|\n";
                let mut row = |name: &str, value: &str, about: &[String]| {
                    let about = escaped(&about.join(" ")).replace('|', "\\|");
                    writeln!(page, "| `{name}` | `{value}` | {about} |").unwrap();
                };
                row(&name, &value, &about);
                while let Some(Item::Constant { name, value, about }) =
                    items.next_if(|item| matches!(item, Item::Constant { .. }))
                {
                    row(&name, &value, &about);
                }
            }
            Item::Declaration { name, code, about } => {
                writeln!(page, "\n### {name}\n").unwrap();
                for line in about {
                    writeln!(page, "{}", escaped(&line)).unwrap();
                }
                writeln!(page, "\n```c elsewhere\n{}\n```", code.join("\n")).unwrap();
            }
        }
    }
    page.replace("\n\n\n", "\n\n")
}

#[test]
fn the_reference_is_the_header() {
    let header = std::fs::read_to_string(root().join("include/arrowquant.h")).unwrap();
    let path = root().join("docs/c-reference.md");
    let made = page(&header);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == made,
        "docs/c-reference.md is not that of the header: UPDATE_DOCS=1 cargo test --release docs"
    );
    // The page has every function.
    let function = regex::Regex::new(r"(?m)^AQ_API .*?\b(aq_[a-z0-9_]+)\(").unwrap();
    let mut count = 0;
    for found in function.captures_iter(&header) {
        assert!(
            made.contains(&format!("\n### {}\n", &found[1])),
            "{}",
            &found[1]
        );
        count += 1;
    }
    assert!(count > 80, "{count} functions");
}
