//! The files installed by bindings/c/install.sh: names, symbols, and linking beside other
//! libraries.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use regex::Regex;

use crate::common::native::*;
use crate::common::*;

/// Returns the prefix where the library of this build is installed.
fn installed() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
        let _ = std::fs::remove_dir_all(&prefix);
        let mut install = Command::new(root().join("bindings/c/install.sh"));
        install.arg("--prefix").arg(&prefix);
        // Cargo puts the libraries that tests use into `deps`; those in the parent folder may be
        // old.
        install.arg("--built").arg(built().join("deps"));
        succeed(install.env("CARGO", env!("CARGO")), "binutils");
        prefix
    })
}

fn in_prefix(name: &str) -> PathBuf {
    installed().join("lib").join(name)
}

/// Returns the constant in the C header.
fn abi_version() -> String {
    let header = std::fs::read_to_string(installed().join("include/arrowquant.h")).unwrap();
    let constant = Regex::new(r"(?m)^#define AQ_ABI_VERSION (\d+)$").unwrap();
    constant.captures(&header).unwrap()[1].to_owned()
}

/// Returns the functions in the C header.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(installed().join("include/arrowquant.h")).unwrap();
    let function = Regex::new(r"(?m)^[a-z].*\b(aq_\w+)\(").unwrap();
    let names: BTreeSet<String> = function
        .captures_iter(&header)
        .map(|found| found[1].to_owned())
        .collect();
    assert!(names.contains("aq_quantize_file") && names.contains("aq_fail"));
    names
}

/// Lists symbols with `nm`: kind and name, without the version.
fn symbols(file: &Path, options: &[&str]) -> BTreeSet<(char, String)> {
    let listed = succeed(Command::new("nm").args(options).arg(file), "binutils");
    let listed = listed.lines().filter_map(|line| {
        let (rest, name) = line.rsplit_once(' ')?;
        let name = name.split('@').next().unwrap();
        Some((rest.chars().last()?, name.to_owned()))
    });
    listed.collect()
}

fn names(symbols: BTreeSet<(char, String)>) -> BTreeSet<String> {
    symbols.into_iter().map(|(_, name)| name).collect()
}

/// Returns the entries of one kind in the shared library's dynamic section.
fn dynamic(kind: &str) -> Vec<String> {
    let mut readelf = Command::new("readelf");
    readelf.arg("-dW").arg(in_prefix("libarrowquant.so"));
    let listed = succeed(readelf.env("LC_ALL", "C"), "binutils");
    let entry = Regex::new(&format!(r"\({kind}\).*\[(.*)\]")).unwrap();
    let entries = entry.captures_iter(&listed);
    entries.map(|found| found[1].to_owned()).collect()
}

#[test]
fn the_shared_library_exports_what_the_header_declares() {
    let exported = symbols(
        &in_prefix("libarrowquant.so"),
        &["--dynamic", "--defined-only"],
    );
    assert_eq!(names(exported), declared());
}

#[test]
fn the_shared_library_is_found_by_its_abi_version() {
    let version = env!("CARGO_PKG_VERSION");
    let soname = format!("libarrowquant.so.{}", abi_version());
    assert_eq!(dynamic("SONAME"), [soname.as_str()]);
    assert_eq!(
        version.split('.').next().unwrap(),
        abi_version(),
        "cargo-c takes the SONAME from the version: set package.metadata.capi.library.version"
    );
    let whole = format!("libarrowquant.so.{version}");
    let link = |name: &str| std::fs::read_link(in_prefix(name)).unwrap();
    assert_eq!(link("libarrowquant.so"), Path::new(&soname));
    assert_eq!(link(&soname), Path::new(&whole));
    let folder = names_in(&installed().join("lib"));
    assert_eq!(
        folder,
        [
            "cmake",
            "libarrowquant.a",
            "libarrowquant.so",
            &soname,
            &whole,
            "pkgconfig"
        ]
    );
}

#[test]
fn the_static_library_shows_what_the_header_declares() {
    let archive = in_prefix("libarrowquant.a");
    let members = succeed(Command::new("ar").arg("t").arg(&archive), "binutils");
    assert_eq!(members, "arrowquant.o\n");
    let shown = symbols(&archive, &["--extern-only", "--defined-only"]);
    assert_eq!(names(shown), declared());

    // Undefined symbols are in the libraries named by the shared one, or may be missing.
    let mut system = BTreeSet::new();
    for name in dynamic("NEEDED") {
        let mut find = compiler("c11");
        let path = succeed(find.arg(format!("-print-file-name={name}")), "gcc");
        let path = Path::new(path.trim());
        system.extend(names(symbols(path, &["--dynamic", "--defined-only"])));
    }
    for (kind, name) in symbols(&archive, &["--undefined-only"]) {
        let of_system = system.contains(&name) || name == "__dso_handle";
        // Weak symbols may be missing: the standard library does without those of newer systems.
        assert!(of_system || kind == 'w', "{kind} {name}");
    }
}

/// Builds a program of tests/c/outside with the installed library, and returns its output.
fn outside(program: &str, link: Link, libraries: &[&Path]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sources = root().join("tests/c/outside");
    let lib = installed().join("lib");
    let check = folder.path().join("check.o");
    let main = folder.path().join("main.o");
    let linked = folder.path().join("program");
    let standard = match program.ends_with(".cpp") {
        true => "c++17",
        false => "c11",
    };
    for (standard, source, object) in [("c11", "check.c", &check), (standard, program, &main)] {
        let mut compile = compiler(standard);
        compile.arg("-c").arg(sources.join(source));
        succeed(compile.arg("-o").arg(object), "gcc or g++");
    }
    let mut command = compiler(standard);
    command.args([&main, &check]).arg("-o").arg(&linked);
    match link {
        Link::Shared => {
            command.arg("-L").arg(&lib).arg("-larrowquant");
            command.arg(format!("-Wl,-rpath,{}", lib.display()));
            command.args(libraries);
        }
        Link::Static => {
            command.args(libraries);
            let package = std::fs::read_to_string(lib.join("pkgconfig/arrowquant.pc")).unwrap();
            let private = package
                .lines()
                .find_map(|line| line.strip_prefix("Libs.private:"));
            command.args(private.unwrap().split_whitespace());
        }
    }
    succeed(&mut command, "gcc or g++");
    let printed = succeed(&mut Command::new(&linked), "gcc");
    assert!(printed.contains("internal error: on purpose"), "{printed}");
    printed
}

#[test]
fn programs_link_with_it() {
    let ours = in_prefix("libarrowquant.a");
    for link in LINKS {
        let libraries: &[&Path] = match link {
            Link::Shared => &[],
            Link::Static => &[&ours],
        };
        let expected = format!("ArrowQuant {}\n", env!("CARGO_PKG_VERSION"));
        let printed = outside("program.c", link, libraries);
        assert!(printed.starts_with(&expected), "{printed}");
        let printed = outside("program.cpp", link, libraries);
        assert!(printed.ends_with("\n2 exceptions\n"), "{printed}");
        // The functions in this program abort when called.
        outside("beside_zstd.c", link, libraries);
    }
}

#[test]
fn another_rust_library_may_be_there_too() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("libother.a");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
    rustc.args(["--edition=2024", "--crate-type=staticlib", "-O", "-o"]);
    rustc
        .arg(&other)
        .arg(root().join("tests/c/outside/other.rs"));
    succeed(&mut rustc, "rustc");
    let ours = in_prefix("libarrowquant.a");
    for order in [[&*ours, &*other], [&*other, &*ours]] {
        let printed = outside("beside_rust.c", Link::Static, &order);
        assert!(printed.ends_with("\nthe other one: 22\n"), "{printed}");
    }
    outside("beside_rust.c", Link::Shared, &[&other]);
}
