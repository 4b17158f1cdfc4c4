//! Lists in the documentation are complete.

use std::collections::HashSet;
use std::process::Command;

use arrowquant::plan::KEYS;
use regex::Regex;

use super::page::Page;
use crate::common::*;

/// Returns the cells of a table between two markers, without its head.
fn table(page: &Page, mark: &str) -> Vec<Vec<String>> {
    let begin = format!("<!-- {mark}: begin -->");
    let end = format!("<!-- {mark}: end -->");
    let text = page.text.split_once(&begin).expect(&begin).1;
    let text = text.split_once(&end).expect(&end).0;
    let rows = text.lines().filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &str| {
        let row = row.trim().trim_matches('|');
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    rows.map(cells).collect()
}

#[test]
fn every_key_has_a_row_and_a_section() {
    let page = Page::read("docs/configuration.md");
    let rows = table(&page, "keys");
    let listed = rows.iter().map(|row| (row[0].as_str(), row[2].as_str()));
    let keys: Vec<String> = KEYS.iter().map(|(key, _)| format!("`{key}`")).collect();
    let expected = keys
        .iter()
        .zip(KEYS)
        .map(|(key, (_, values))| (key.as_str(), *values));
    assert_eq!(listed.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    for key in &keys {
        let heading = format!("### {key}\n");
        assert!(page.text.contains(&heading), "no section {heading}");
    }
    // Every listed flag is a flag of the program.
    let help = arrowquant_ok(["quantize", "--help"]);
    for row in &rows {
        for flag in row[1].split(',') {
            let flag = flag.trim().trim_matches('`');
            assert!(help.contains(&format!("{flag} ")), "no {flag}: {row:?}");
        }
    }
}

/// The defaults by profile on the page are those of plans.
#[test]
fn defaults_by_profile() {
    let page = Page::read("docs/configuration.md");
    let rows = table(&page, "profiles");
    assert!(rows.len() >= 5, "{rows:?}");
    for row in rows {
        let key = row[0].trim_matches('`');
        for (profile, said) in ["edge", "local", "cloud"].iter().zip(&row[1..]) {
            let said = said.trim_matches('`');
            let found = config(&[("deployment_profile", profile)]).get(key);
            assert_eq!(found.unwrap(), said, "{key} of {profile}");
        }
    }
}

#[test]
fn every_error_has_a_section() {
    let header = std::fs::read_to_string(root().join("include/arrowquant.h")).unwrap();
    let page = Page::read("docs/troubleshooting.md");
    let code = Regex::new(r"(?m)^#define (AQ_ERROR_[A-Z]+) (\d+)$").unwrap();
    let mut count = 0;
    for found in code.captures_iter(&header) {
        let heading = format!("## {} ({})\n", &found[1], &found[2]);
        assert!(page.text.contains(&heading), "no section {heading}");
        count += 1;
    }
    assert!(count >= 9, "{count} codes");
}

#[test]
fn every_name_of_the_python_package_is_in_its_guide() {
    let page = Page::read("docs/python.md");
    let mut python = Command::new(crate::python::python());
    let all = "import arrowquant as a; print(*a.__all__, *a.kernels.__all__)";
    python.args(["-c", all]);
    let names = native::succeed(&mut python, "python3");
    let names: Vec<&str> = names.split_whitespace().collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(page.text.contains(name), "no {name} in docs/python.md");
    }
}

/// The figures in the README are those of the benchmarks.
#[test]
fn figures_are_those_of_the_benchmarks() {
    let benchmarks = Page::read("docs/benchmarks.md");
    let measured: HashSet<&str> = benchmarks.text.lines().collect();
    let page = Page::read("README.md");
    let text = page.text.split_once("## What you get").unwrap().1;
    let text = text.split_once("\n## ").unwrap().0;
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for row in rows {
        assert!(measured.contains(row), "not in docs/benchmarks.md: {row}");
    }
}

#[test]
fn one_version_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let printed = arrowquant_ok(["--version"]);
    assert_eq!(printed.trim(), format!("arrowquant {version}"));

    let changes = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let newest = Regex::new(r"(?m)^## \[(\d[^\]]*)\]").unwrap();
    assert_eq!(&newest.captures(&changes).unwrap()[1], version);

    let mut python = Command::new(crate::python::python());
    let text = "import arrowquant, importlib.metadata as m; \
                print(arrowquant.__version__, m.version('arrowquant'))";
    let printed = native::succeed(python.args(["-c", text]), "python3");
    assert_eq!(printed.trim(), [version; 2].join(" "));

    // Pages that give a version for CMake and Cargo.
    let minor = version.rsplit_once('.').unwrap().0;
    let asked = Regex::new(
        r#"find_package\(ArrowQuant (\d+\.\d+)|arrowquant = \{? ?(?:version = )?"(\d+\.\d+)"#,
    )
    .unwrap();
    let mut count = 0;
    for path in super::PAGES {
        for found in asked.captures_iter(&Page::read(path).text) {
            let said = found.get(1).or(found.get(2)).unwrap();
            assert_eq!(said.as_str(), minor, "{path}");
            count += 1;
        }
    }
    assert!(count > 0);
}
