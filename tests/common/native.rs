//! C and C++ programs, compiled against the library this build made.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::root;

/// How a program gets the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    Static,
}

pub const LINKS: [Link; 2] = [Link::Shared, Link::Static];

/// The folder of what was built.
pub fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_arrowquant"))
        .parent()
        .unwrap()
}

/// A library as it was built for the tests; one folder up is what `cargo build` made some time.
pub fn library(name: &str) -> PathBuf {
    built().join("deps").join(name)
}

/// The name of the shared library as it was built.
pub fn shared() -> String {
    format!("{DLL_PREFIX}arrowquant{DLL_SUFFIX}")
}

/// Cargo as it made this build: what it has built already it does not build again.
pub fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg(command).arg("--quiet").current_dir(root());
    let profile = built().file_name().unwrap().to_str().unwrap();
    cargo
        .arg("--profile")
        .arg(if profile == "debug" { "dev" } else { profile });
    cargo.arg("--target-dir").arg(built().parent().unwrap());
    cargo
}

/// A folder where the shared library is found by the name that it gives itself.
pub fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shared");
        link_shared(&folder, &library(&shared()));
        folder
    })
}

/// Makes a folder where a shared library has the names that programs look for when they are linked,
/// and when they run.
fn link_shared(folder: &Path, library: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let own = match DLL_SUFFIX {
        ".dylib" => "libarrowquant.1.dylib".to_owned(),
        ".so" => "libarrowquant.so.1".to_owned(),
        _ => shared(),
    };
    for name in [shared(), own] {
        link_to(folder, &name, library);
    }
}

fn link_to(folder: &Path, name: &str, file: &Path) {
    let link = folder.join(name);
    let _ = std::fs::remove_file(&link);
    #[cfg(unix)]
    std::os::unix::fs::symlink(file, link).unwrap();
    #[cfg(not(unix))]
    std::fs::copy(file, link).unwrap();
}

/// The C or C++ compiler, warnings being errors.
pub fn compiler(standard: &str) -> Command {
    let cpp = standard.starts_with("c++");
    let found = cc::Build::new()
        .cpp(cpp)
        .target(env!("TARGET"))
        .host(env!("TARGET"))
        .opt_level(1)
        .cargo_metadata(false)
        .try_get_compiler();
    let package = if cpp { "g++" } else { "gcc" };
    let found = found.unwrap_or_else(|error| {
        panic!("the tests need a C and a C++ compiler, such as the package {package}: {error}")
    });
    let mut command = Command::new(found.path());
    command.args(found.args()).envs(found.get_envs());
    command.arg(format!("-std={standard}"));
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    command.arg("-I").arg(root().join("include"));
    command
}

/// Runs a tool that comes with the compiler or the system.
pub fn run(command: &mut Command, package: &str) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| {
        let tool = command.get_program();
        panic!("{tool:?}: {error}; the tests need the package {package}")
    })
}

/// Expects success, and returns what was printed.
pub fn succeed(command: &mut Command, package: &str) -> String {
    let output = run(command, package);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (tool, args) = (command.get_program(), command.get_args());
    assert!(
        output.status.success(),
        "{tool:?} {:?}: {}\n{stdout}{stderr}",
        args.collect::<Vec<_>>(),
        output.status
    );
    stdout
}

/// A folder with the library that has a bug on purpose (tests/c/fail.rs), under the names of the real
/// one. It is built if need be: only linked, as the crate itself was built for the tests.
pub fn failing_library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let mut build = cargo("rustc");
        build.args(["--example", "arrowquant_fail"]);
        if DLL_SUFFIX == ".so" {
            build.args(["--", "-Clink-arg=-Wl,-soname,libarrowquant.so.1"]);
        }
        succeed(&mut build, "cargo");
        let shared = format!("{DLL_PREFIX}arrowquant_fail{DLL_SUFFIX}");
        let examples = built().join("examples");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failing");
        link_shared(&folder, &examples.join(shared));
        link_to(
            &folder,
            "libarrowquant.a",
            &examples.join("libarrowquant_fail.a"),
        );
        folder
    })
}

/// Compiles a program of one file and links the library to it.
pub fn build(source: &Path, standard: &str, link: Link, program: &Path) {
    let archive = library("libarrowquant.a");
    build_with(
        source,
        standard,
        link,
        (library_folder(), &archive),
        program,
    );
}

/// As [`build`], with the library that has a bug on purpose.
pub fn build_failing(source: &Path, link: Link, program: &Path) {
    let folder = failing_library();
    let archive = folder.join("libarrowquant.a");
    build_with(source, "gnu11", link, (folder, &archive), program);
}

/// Compiles and links with the shared library in a folder, or with an archive.
fn build_with(
    source: &Path,
    standard: &str,
    link: Link,
    (folder, archive): (&Path, &Path),
    program: &Path,
) {
    let mut command = compiler(standard);
    command.arg("-g").arg(source).arg("-o").arg(program);
    match link {
        Link::Shared => {
            command.arg("-L").arg(folder).arg("-larrowquant");
            command.arg(format!("-Wl,-rpath,{}", folder.display()));
        }
        Link::Static => {
            command.arg(archive);
        }
    }
    command.args(["-lpthread", "-ldl", "-lm"]);
    succeed(&mut command, "gcc or g++");
}
