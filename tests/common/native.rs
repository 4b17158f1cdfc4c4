//! C and C++ programs, compiled and linked with the library of this build.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use super::root;

/// How a program is linked with the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Shared,
    Static,
}

pub const LINKS: [Link; 2] = [Link::Shared, Link::Static];

/// Returns the build folder.
pub fn built() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_arrowquant"))
        .parent()
        .unwrap()
}

/// Returns the path of a library built for the tests; the one in the parent folder may be older.
pub fn library(name: &str) -> PathBuf {
    built().join("deps").join(name)
}

/// Returns the file name of the shared library.
pub fn shared() -> String {
    format!("{DLL_PREFIX}arrowquant{DLL_SUFFIX}")
}

/// Returns cargo with the options of this build, so that it rebuilds nothing.
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

/// Returns a folder where the shared library is found by its SONAME.
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

/// Returns the C or C++ compiler, with warnings as errors.
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

/// Runs a tool that belongs to the compiler or the system.
pub fn run(command: &mut Command, package: &str) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| {
        let tool = command.get_program();
        panic!("{tool:?}: {error}; the tests need the package {package}")
    })
}

/// Expects success, and returns the output.
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

/// Compiles a program of one file and links it with the library.
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
