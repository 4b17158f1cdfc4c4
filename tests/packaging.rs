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
    // Cargo leaves the libraries that tests use in `deps`; those one folder up may be old.
    PREFIX.get_or_init(|| install("installed", &built().join("deps")))
}

/// The prefix that the library with a bug on purpose was installed to.
fn installed_failing() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| install("installed-failing", failing_library()))
}

/// Installs the libraries in a folder to a prefix of this name.
fn install(name: &str, libraries: &Path) -> PathBuf {
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&prefix);
    let mut install = Command::new(root().join("bindings/c/install.sh"));
    install.arg("--prefix").arg(&prefix);
    install.arg("--built").arg(libraries);
    succeed(install.env("CARGO", env!("CARGO")), "binutils");
    prefix
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
    let function = Regex::new(r"(?m)^AQ_API .*\b(aq_\w+)\(").unwrap();
    let names: BTreeSet<String> = function
        .captures_iter(&header)
        .map(|found| found[1].to_owned())
        .collect();
    assert!(names.contains("aq_quantize_file") && names.len() > 80);
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

/// What install.sh printed, and how it called cargo, with a target folder that holds libraries of these
/// profiles, the newest last. Cargo does nothing there, as where all is as its sources are.
fn installing(profiles: &[&str], options: &[&str]) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    for (i, profile) in profiles.iter().enumerate() {
        let deps = target.join(profile).join("deps");
        std::fs::create_dir_all(&deps).unwrap();
        for name in ["libarrowquant.so", "libarrowquant.a"] {
            std::os::unix::fs::symlink(library(name), target.join(profile).join(name)).unwrap();
            let file = std::fs::File::create(deps.join(name)).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 * i as u64);
            file.set_modified(time).unwrap();
        }
    }
    let cargo = folder.path().join("cargo");
    let log = folder.path().join("log");
    let script = format!(
        "#!/bin/sh\ncase $1 in metadata) echo '{{\"target_directory\":\"{}\",\"version\":1}}' ;; *) echo \"$@\" >>'{}' ;; esac\n",
        target.display(),
        log.display()
    );
    std::fs::write(&cargo, script).unwrap();
    let mut permissions = std::fs::metadata(&cargo).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&cargo, permissions).unwrap();
    let mut install = Command::new(root().join("bindings/c/install.sh"));
    install.arg("--prefix").arg(folder.path().join("prefix"));
    install.args(options).env("CARGO", &cargo);
    let printed = succeed(&mut install, "binutils");
    let prefix = folder.path().join("prefix/lib/libarrowquant.so");
    assert!(prefix.exists(), "{printed}");
    (printed, std::fs::read_to_string(log).unwrap())
}

#[test]
fn a_library_that_is_built_already_is_installed() {
    let dist = "rustc --locked -p arrowquant --lib --profile dist --no-default-features --features capi --crate-type cdylib,staticlib\n";
    let release = "build --locked -p arrowquant --lib --profile release\n";
    // Cargo is asked in any case, so that no stale library is installed.
    let (printed, called) = installing(&["release"], &[]);
    assert!(printed.contains("target/release"), "{printed}");
    assert_eq!(called, release);
    let (printed, called) = installing(&["release", "dist"], &[]);
    assert!(printed.contains("target/dist"), "{printed}");
    assert_eq!(called, dist);
    assert_eq!(installing(&["dist", "release"], &[]).1, release);
    for options in [&["--rebuild"][..], &["--profile", "dist"]] {
        assert_eq!(installing(&["dist", "release"], options).1, dist);
    }
    let (_, called) = installing(&["dist", "release"], &["--profile=release"]);
    assert_eq!(called, dist.replace("--profile dist", "--profile release"));
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
    // cargo-c takes the SONAME from a version in the manifest.
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest
        .split("[package.metadata.capi.library]")
        .nth(1)
        .unwrap();
    let of_library = Regex::new(r#"(?m)^version = "(\d+)\.0\.0"$"#).unwrap();
    assert_eq!(of_library.captures(section).unwrap()[1], abi_version());
    let whole = format!("libarrowquant.so.{version}");
    let link = |name: &str| std::fs::read_link(in_prefix(name)).unwrap();
    assert_eq!(link("libarrowquant.so"), Path::new(&soname));
    assert_eq!(link(&soname), Path::new(&whole));
    let mut wanted = vec![
        "cmake".to_owned(),
        "libarrowquant.a".to_owned(),
        "libarrowquant.so".to_owned(),
        soname,
        whole,
        "pkgconfig".to_owned(),
    ];
    wanted.sort();
    assert_eq!(names_in(&installed().join("lib")), wanted);
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

/// Builds a program of tests/c/outside with the library in a prefix, and returns its output.
/// `libraries` are linked too; with a static library, they include it.
fn outside(prefix: &Path, program: &str, link: Link, libraries: &[&Path]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let sources = root().join("tests/c/outside");
    let lib = prefix.join("lib");
    let check = folder.path().join("check.o");
    let main = folder.path().join("main.o");
    let linked = folder.path().join("program");
    let standard = match program.ends_with(".cpp") {
        true => "c++17",
        false => "c11",
    };
    for (standard, source, object) in [("c11", "check.c", &check), (standard, program, &main)] {
        let mut compile = compiler(standard);
        if prefix == installed_failing() {
            compile.arg("-DAQ_FAIL");
        }
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
    assert!(printed.contains("on purpose"), "{printed}");
    let panicked = printed.contains("internal error: on purpose");
    assert_eq!(panicked, prefix == installed_failing(), "{printed}");
    printed
}

#[test]
fn programs_link_with_it() {
    for prefix in [installed(), installed_failing()] {
        let ours = prefix.join("lib/libarrowquant.a");
        for link in LINKS {
            let libraries: &[&Path] = match link {
                Link::Shared => &[],
                Link::Static => &[&ours],
            };
            let expected = format!("ArrowQuant {}\n", env!("CARGO_PKG_VERSION"));
            let printed = outside(prefix, "program.c", link, libraries);
            assert!(printed.starts_with(&expected), "{printed}");
            let printed = outside(prefix, "program.cpp", link, libraries);
            assert!(printed.ends_with("\n2 exceptions\n"), "{printed}");
        }
    }
    // The functions in this program stop it when they are called.
    outside(installed(), "beside_zstd.c", Link::Shared, &[]);
    let ours = in_prefix("libarrowquant.a");
    outside(installed(), "beside_zstd.c", Link::Static, &[&ours]);
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
    // Panics of both are caught, each by its own library.
    for prefix in [installed(), installed_failing()] {
        let ours = prefix.join("lib/libarrowquant.a");
        for order in [[&*ours, &*other], [&*other, &*ours]] {
            let printed = outside(prefix, "beside_rust.c", Link::Static, &order);
            assert!(printed.ends_with("\nthe other one: 22\n"), "{printed}");
        }
        outside(prefix, "beside_rust.c", Link::Shared, &[&other]);
    }
}
