//! Links between pages and to files.

use std::collections::HashSet;

use regex::Regex;

use super::PAGES;
use super::page::Page;
use crate::common::root;

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut inside = false;
    for line in text.lines() {
        inside ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if inside || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = heading.trim().chars().filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
            _ => None,
        });
        let anchor: String = kept.collect();
        // The second one with the same name, and so on.
        let numbered = (1..).map(|i| format!("{anchor}-{i}"));
        let mut names = std::iter::once(anchor.clone()).chain(numbered);
        let free = names.find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut followed = 0;
    for path in PAGES {
        let page = Page::read(path);
        for (line, text) in page.prose() {
            for found in link.captures_iter(text) {
                let target = &found[1];
                if target.starts_with("https://") {
                    continue;
                }
                let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
                let here = root().join(path);
                let there = match file {
                    "" => here.clone(),
                    file => here.parent().unwrap().join(file),
                };
                let place = format!("{path}:{line}: {target}");
                assert!(there.exists(), "{place} does not exist");
                let inside = there.canonicalize().unwrap();
                assert!(
                    inside.starts_with(root().canonicalize().unwrap()),
                    "{place}"
                );
                if !anchor.is_empty() {
                    let text = std::fs::read_to_string(&there).unwrap();
                    assert!(anchors(&text).contains(anchor), "{place}: no such heading");
                }
                followed += 1;
            }
        }
    }
    assert!(followed > 50, "{followed} links");
}

/// The functions named in docs/architecture.md exist in the files linked behind them.
#[test]
fn the_architecture_names_what_there_is() {
    let page = Page::read("docs/architecture.md");
    let text: Vec<&str> = page.prose().map(|(_, line)| line.trim()).collect();
    let text = text.join(" ");
    let places = Regex::new(r"((?:`\w+`,? )+)\(\[[^\]]+\]\(([^)]+)\)\)").unwrap();
    let mut named = 0;
    for found in places.captures_iter(&text) {
        let code = std::fs::read_to_string(root().join("docs").join(&found[2])).unwrap();
        for name in found[1]
            .split(['`', ',', ' '])
            .filter(|name| !name.is_empty())
        {
            let word = Regex::new(&format!(r"\b{name}\b")).unwrap();
            assert!(word.is_match(&code), "no {name} in {}", &found[2]);
            named += 1;
        }
    }
    assert!(named > 50, "{named} names");
}

/// The files named in CONTRIBUTING.md exist. NAME stands for a file to be written.
#[test]
fn contributing_leads_to_what_there_is() {
    let page = Page::read("CONTRIBUTING.md");
    let path = Regex::new(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|toml|rs))`").unwrap();
    let mut named = 0;
    for (line, text) in page.prose() {
        for found in path
            .captures_iter(text)
            .filter(|found| !found[1].contains("NAME"))
        {
            assert!(
                root().join(&found[1]).exists(),
                "line {line}: {}",
                &found[1]
            );
            named += 1;
        }
    }
    assert!(named > 30, "{named} files");
}

#[test]
fn anchors_are_those_of_github() {
    let found = anchors("# A `b_c`, d-e!\n## x\n## x\n```\n# no\n```\n#no\n");
    let expected = ["a-b_c-d-e", "x", "x-1"].map(str::to_owned);
    assert_eq!(found, HashSet::from(expected));
}
