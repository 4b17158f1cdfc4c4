//! Pages of the documentation, and the code blocks in them.
//!
//! | block | is |
//! |---|---|
//! | `console` | commands after `$ `, and their output; `…` stands for any lines |
//! | `sh` | commands that must succeed |
//! | `python` | a part of the page's one script |
//! | `c`, `cpp` | a whole program |
//! | `yaml` | a configuration |
//! | `sql` | a query for DuckDB |
//! | `rust` | must be in the documentation of the crate, whose examples are compiled |
//! | `text` | not code |
//! | any, and a name: `c program.c` | a file to write |
//! | `sh elsewhere` | commands in `.ci/`, the workflows, or the benchmarks |
//! | `c elsewhere` | a part of the header |
//!
//! A comment `<!-- run: COMMAND -->` is a command that is not shown.

use crate::common::root;

pub struct Page {
    /// Path from the root.
    pub path: &'static str,
    pub text: String,
}

pub struct Block {
    pub language: String,
    /// The word after the language: a file name, or `elsewhere`.
    pub name: Option<String>,
    pub lines: Vec<String>,
    /// Line number of the fence.
    pub line: usize,
}

impl Block {
    pub fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }
}

/// A command and its expected output.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub command: String,
    pub printed: Vec<String>,
}

impl Page {
    pub fn read(path: &'static str) -> Self {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        Self { path, text }
    }

    /// Returns the lines outside of code blocks, with their numbers.
    pub fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut inside = false;
        self.text.lines().enumerate().filter_map(move |(i, line)| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            (!inside && !fence).then_some((i + 1, line))
        })
    }

    /// Returns the blocks in order; hidden commands are `sh`.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (i, line) in self.text.lines().enumerate() {
            let line_number = i + 1;
            if let Some(info) = line.trim_start().strip_prefix("```") {
                inside = !inside;
                if inside {
                    let mut words = info.split_whitespace();
                    let language = words.next();
                    blocks.push(Block {
                        language: language.unwrap_or_default().to_owned(),
                        name: words.next().map(str::to_owned),
                        lines: Vec::new(),
                        line: line_number,
                    });
                }
            } else if inside {
                blocks.last_mut().unwrap().lines.push(line.to_owned());
            } else if let Some(hidden) = line.trim().strip_prefix("<!-- run: ") {
                let command = hidden.strip_suffix(" -->");
                blocks.push(Block {
                    language: "sh".to_owned(),
                    name: None,
                    lines: vec![command.expect("ends in -->").to_owned()],
                    line: line_number,
                });
            }
        }
        assert!(!inside, "{}: a block does not end", self.path);
        blocks
    }
}

/// Returns the commands of a `console` block. A command that ends in a backslash continues in the
/// next line.
pub fn shown(block: &Block) -> Vec<Shown> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut goes_on = false;
    for line in &block.lines {
        if goes_on {
            let last = &mut shown.last_mut().unwrap().command;
            last.push('\n');
            last.push_str(line);
        } else if let Some(command) = line.strip_prefix("$ ") {
            shown.push(Shown {
                command: command.to_owned(),
                printed: Vec::new(),
            });
        } else {
            let last = shown.last_mut().expect("output follows a command");
            last.printed.push(line.clone());
            continue;
        }
        goes_on = line.ends_with('\\');
    }
    shown
}

/// Whether lines are as expected, where `…` may be any number of lines.
pub fn alike(expected: &[String], found: &[&str]) -> bool {
    match expected.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=found.len()).any(|n| alike(rest, &found[n..]))
        }
        Some((first, rest)) => found
            .split_first()
            .is_some_and(|(line, found)| line == first && alike(rest, found)),
    }
}

#[test]
fn dots_stand_for_any_lines() {
    let lines = |text: &[&str]| text.iter().map(|line| line.to_string()).collect::<Vec<_>>();
    let expected = lines(&["a", "…", "b"]);
    assert!(alike(&expected, &["a", "x", "y", "b"]) && alike(&expected, &["a", "b"]));
    assert!(!alike(&expected, &["a", "b", "c"]) && !alike(&expected, &["x", "b"]));
}

#[test]
fn blocks_are_found() {
    let text =
        "a\n\n```c x.c\nint x;\n```\n<!-- run: true -->\n```console\n$ a \\\n  b\n1\n$ c\n```\n";
    let page = Page {
        path: "page",
        text: text.to_owned(),
    };
    let blocks = page.blocks();
    let heads = blocks
        .iter()
        .map(|block| (block.language.as_str(), block.name.as_deref(), block.line));
    assert_eq!(
        heads.collect::<Vec<_>>(),
        [("c", Some("x.c"), 3), ("sh", None, 6), ("console", None, 7)]
    );
    assert_eq!(blocks[0].text(), "int x;\n");
    assert_eq!(blocks[1].text(), "true\n");
    let commands = [("a \\\n  b", vec!["1"]), ("c", vec![])];
    let commands = commands.map(|(command, printed)| Shown {
        command: command.to_owned(),
        printed: printed.into_iter().map(str::to_owned).collect(),
    });
    assert_eq!(shown(&blocks[2]), commands);
    assert_eq!(page.prose().map(|(i, _)| i).collect::<Vec<_>>(), [1, 2, 6]);
}
